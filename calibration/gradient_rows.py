"""The gradient matrix A of second-order methods: one row per mini-batch, stored on disk, read by blocks of columns.

With n = 50 rows of full-size X-VLM it takes 37 GB, more than memory; methods read it layer by layer.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from calibration.processes import Group
from calibration.statistics import Layers, Statistic, backward, with_gradient
from console.errors import InputError, explain_os_error
from console.progress import console
from models.base import Batch, Model
from models.common.blocks import activations_recomputed

BUFFER = 32 << 20
"""Bytes of A read and held in memory at a time."""

CACHED = 4 << 20
"""Bytes of A given out at a time, in float32: what is computed from them then stays in the processor's cache."""


class GradientRows(Statistic):
    """A statistic, too large to be saved: row t of A is the gradient of the mean loss of step t, float32.

    The file holds layer after layer, each as n rows, in a temporary folder that `close` removes.
    samples: number of samples (texts, or images without texts) in all rows.
    """

    def __init__(self, model: Model, layers: Layers, rows: int, sides: int, folder: str | None, vectors: int = 0):
        """rows: the largest number of rows. folder: of the file (default: the system's temporary folder). vectors:
        number of vectors (`vector`) for which the disk must have room, too.
        """
        self.follows_state = model.follows_state
        self.samples = 0
        self._model, self._layers, self._rows, self._sides = model, layers, rows, sides
        self._units = 0
        self._alone = Group.current().size == 1
        self._written: set[str] = set()
        self._reached: set[str] = set()
        sizes = [layer.weight.numel() for layer in layers.values()]
        self._offsets = dict(zip(layers, itertools.accumulate(sizes, initial=0), strict=False))
        weights = sum(sizes)
        what = f"{rows} gradients of {weights / 1e6:.1f} M weights"
        self._folder = make_folder(folder, 4 * weights * (rows + vectors), what)
        self._file = (self._folder / "rows.f32").open("w+b", buffering=0)
        self._batch_samples = 0
        self._memory = np.empty(0, dtype=np.float32)

    @property
    def rows(self) -> int:
        """Number of complete rows."""
        return self._units // self._sides

    def update(self, batch: Batch) -> None:
        """Back-propagate one unit."""
        for layer in self._layers.values():
            layer.weight.grad = None
        with activations_recomputed(self._model):  # stored activations would dominate CHITA's memory
            loss = self._model.loss(batch)
            with self._written_at_once():
                backward(loss)
        tensors = [value for value in batch.values() if isinstance(value, Tensor) and value.dim() > 0]
        if not tensors:
            raise InputError("chita counts samples by a batch's first tensor, but this batch has none at its top level")
        self._batch_samples = len(batch.get("text_ids", tensors[0]))  # a sample is a region, not its image

    def pass_by(self, batch: Batch) -> None:
        """Update queues and momentum copies as for any batch."""
        self._model.pass_by(batch)

    @contextmanager
    def _written_at_once(self) -> Iterator[None]:
        """A single process writes and frees each gradient at once: all of them would be a second copy of the model."""
        self._written.clear()
        with ExitStack() as hooks:
            for name, layer in self._layers.items() if self._alone else ():
                hooks.enter_context(layer.weight.register_post_accumulate_grad_hook(partial(self._write, name)))
            yield

    def _write(self, name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        row, position = divmod(self._units, self._sides)
        if row < self._rows:
            self._add(name, row, weight.grad.div_(self._sides), first=position == 0)
        self._written.add(name)
        weight.grad = None

    def merge(self, group: Group, ranks: list[int]) -> None:
        """Add each process's unit to its row; every process writes the whole matrix."""
        device = next(iter(self._layers.values())).weight.device
        for rank, reached in zip(ranks, group.objects(with_gradient(self._layers), ranks), strict=True):
            row, position = divmod(self._units, self._sides)
            if row < self._rows:
                for name, layer in self._layers.items():
                    if name in self._written:
                        continue
                    if name not in reached:
                        raise InputError(
                            f"the loss gives no gradient to '{name}': exclude the layer or let the loss use it"
                        )
                    part = group.from_rank(rank, layer.weight.grad, like=layer.weight)
                    self._add(name, row, part / self._sides, first=position == 0)
                samples = torch.tensor([float(self._batch_samples)], device=device)
                self.samples += int(group.from_rank(rank, samples, like=samples))
            self._units += 1
        for layer in self._layers.values():
            layer.weight.grad = None

    def _add(self, name: str, row: int, part: Tensor, first: bool) -> None:
        flat = part.detach().float().cpu().numpy().reshape(-1)
        if name not in self._reached and flat.any():
            self._reached.add(name)
        at = self._at(name, row, 0)
        if not first:
            before = np.empty_like(flat)
            self._read(at, before)
            flat = np.add(flat, before, out=before)
        self._file.seek(at)
        _write(self._file, flat)

    def all_zero(self) -> list[str]:
        """Layers without any gradient, such as an expert without tokens."""
        return [name for name in self._layers if name not in self._reached]

    def blocks(self, name: str, width: int) -> Iterator[tuple[slice, Tensor]]:
        """The layer's columns in order, `width` or a multiple of it at a time: (columns, A of them [n, columns]).

        A is valid until the next one is asked for: they share their memory.
        """
        size = self._layers[name].weight.numel()
        columns, given = (max(1, most // (4 * self.rows * width)) * width for most in (BUFFER, CACHED))
        if self._memory.size < (needed := self.rows * min(columns, size)):
            self._memory = np.empty(needed, dtype=np.float32)  # kept: new memory costs more than the reading
        for start in range(0, size, columns):
            stop = min(start + columns, size)
            block = self._memory[: self.rows * (stop - start)].reshape(self.rows, stop - start)
            for row in range(self.rows):
                self._read(self._at(name, row, start), block[row])
            for at in range(0, stop - start, given):
                part = block[:, at : at + given]
                yield slice(start + at, start + at + part.shape[1]), torch.from_numpy(part)

    def _at(self, name: str, row: int, column: int) -> int:
        size = self._layers[name].weight.numel()
        return 4 * (self._offsets[name] * self._rows + row * size + column)

    def _read(self, at: int, into: np.ndarray) -> None:
        self._file.seek(at)
        left = memoryview(into).cast("B")
        while left:  # one read may bring less than was asked for
            if not (count := self._file.readinto(left)):
                raise InputError(f"{self._folder} has lost gradients: give another --scratch_dir")
            left = left[count:]

    def vector(self, number: int) -> WeightVector:
        """A vector on disk with one number per weight, deleted together with the rows; number: tells them apart."""
        shapes = {name: tuple(layer.weight.shape) for name, layer in self._layers.items()}
        return WeightVector(self._folder / f"vector{number}.f32", shapes)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class WeightVector:
    """A vector on disk, one float32 per weight, layer after layer: in memory it would be as large as the model.

    It can be overwritten, and read by several threads.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]]):
        """shapes: of each layer's weight."""
        self._path, self._shapes = path, dict(shapes)
        sizes = map(math.prod, shapes.values())
        self._offsets = dict(zip(shapes, itertools.accumulate(sizes, initial=0), strict=False))
        path.touch()

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """values [m] of the layer's flattened weights from number `start` on."""
        with self._path.open("r+b", buffering=0) as file:
            file.seek(4 * (self._offsets[name] + start))
            _write(file, np.ascontiguousarray(values, dtype=np.float32))

    def read(self, name: str) -> np.ndarray:
        """All of a layer, in the shape of its weight."""
        shape = self._shapes[name]
        return np.fromfile(self._path, np.float32, math.prod(shape), offset=4 * self._offsets[name]).reshape(shape)


def _write(file: FileIO, values: np.ndarray) -> None:
    """Write all values: one raw write may take fewer; InputError where the disk is full."""
    left = memoryview(values).cast("B")
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise explain_os_error(error, f"write gradients to {file.name}") from error


def make_folder(folder: str | None, size: int, what: str) -> Path:
    """A new temporary folder; prints how many bytes are needed, InputError when the disk has fewer."""
    try:
        made = Path(tempfile.mkdtemp(prefix="gradients-", dir=folder))
    except OSError as error:
        where = folder or "the system's temporary folder"
        raise InputError(f"cannot make a scratch folder in {where}: choose another with --scratch_dir") from error
    free = shutil.disk_usage(made).free
    if size > 1e9:
        console.print(f"{what} need {size / 1e9:.1f} GB in {made.parent} ({free / 1e9:.1f} GB free)")
    if size > free:
        shutil.rmtree(made)
        raise InputError(
            f"{what} need {size / 1e9:.1f} GB, but {made.parent} has {free / 1e9:.1f} GB free: "
            "give a larger --scratch_dir, or fewer --num_batches"
        )
    return made
