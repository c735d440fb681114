"""MoPE, the module-wise pruning error: how much a score of the model drops when a single part is removed.

    error(part) = Z(model) - Z(model without the part)
Lin et al., "MoPE-CLIP", CVPR 2024; Z: shrinking/scores.py. A head or neuron is removed by zeros in the columns that
read it, a layer by returning its inputs as outputs; a model cut by `models.surgery.cut` has the same outputs. Parts
that a score does not use (fusion layers, for `itc`) have no error, and are kept.

    python shrink.py measure --model xvlm-mini --criterion mope --samples 500
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.preserve import moving_restored, preserved
from calibration.processes import Group
from calibration.resume import Checkpoint, no_checkpoint
from calibration.stream import device_of, to_device
from console.errors import InputError
from console.progress import console, progress_bar
from console.words import counted
from data.randomness import seeded
from models.base import Batch, Model
from models.parts import Layers, Units, all_sets, named_tensors
from shrinking.errors import Errors
from shrinking.pooled import Pooled
from shrinking.replay import Replay
from shrinking.scores import Score
from shrinking.screening import Screen, joined

EVERY = 64
"""Parts measured per pass over the data, and checkpointed together."""


@dataclass(frozen=True)
class Removal:
    """A part to remove: a group of a set. changed: ids of the tensors that its removal changes.

    columns: for units, (tensor that reads them, axis, entries); layers: for a layer, it and its momentum copies.
    members: groups of several sets that are removed together, under the name of the first.
    """

    name: str
    one: Units | Layers
    group: Tensor  # bool [count], the removed units
    changed: frozenset[int]
    columns: tuple[tuple[Tensor, int, Tensor], ...] = ()
    layers: tuple[nn.Module, ...] = ()
    members: tuple[Removal, ...] = ()

    @property
    def each(self) -> tuple[Removal, ...]:
        """All removed groups: the members, or itself."""
        return self.members or (self,)


def removals(model: Model, groups: Mapping[str, Tensor]) -> list[Removal]:
    """All parts of the sets that have groups, in the model's order. groups: as of `Errors`."""
    tensors = named_tensors(model)
    found = []
    for one in all_sets(model):
        for number in range(int(groups[one.name].max()) + 1) if one.name in groups else ():
            group = groups[one.name] == number
            if isinstance(one, Units):
                at = [(tensors[at.tensor], at.axis, at.entries(group).nonzero()[:, 0]) for at in reading(one, tensors)]
                columns = tuple((tensor, axis, entries.to(tensor.device)) for tensor, axis, entries in at)
                changed = frozenset(id(tensor) for tensor, _, _ in columns)
                found.append(Removal(one.name, one, group, changed, columns))
            else:
                paths = [f"{path}.{int(group.nonzero()[0])}" for path in one.lists]
                gone = tuple(f"{path}." for path in paths)
                changed = frozenset(id(tensor) for name, tensor in tensors.items() if name.startswith(gone))
                layers = tuple(model.inner.get_submodule(path) for path in paths)
                found.append(Removal(one.name, one, group, changed, layers=layers))
    return found


def reading(one: Units, tensors: Mapping[str, Tensor]) -> list:
    """The slices that read a set's units: in the consumer, and in its momentum copy."""
    return [at for at in one.slices if at.axis == one.axis and tensors[at.tensor].dim() > 1]


@contextmanager
def removed(part: Removal) -> Iterator[None]:
    """Remove the part in place; restore it on exit, bit for bit."""
    handles = [layer.register_forward_hook(_passed_by, with_kwargs=True) for layer in part.layers]
    saved = []
    try:
        with torch.no_grad():
            for tensor, axis, entries in part.columns:
                # Zeros in the columns that read a unit remove it exactly; zeros in its own rows would leave its bias.
                saved.append(tensor.detach().index_select(axis, entries))
                tensor.index_fill_(axis, entries, 0)
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            # Not strict: after an interrupt while saving, the other tensors are still unchanged.
            for (tensor, axis, entries), value in zip(part.columns, saved, strict=False):
                tensor.index_copy_(axis, entries, value)


def _passed_by(layer: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
    states = args[0] if args else kwargs["hidden_states"]
    return states if isinstance(output, Tensor) else (states, *output[1:])


def mope(
    model: Model,
    batches: Callable[[], Iterable[Batch]],
    score: Score,
    groups: Mapping[str, Tensor],
    seed: int = 42,
    group: Group | None = None,
    checkpoint: Checkpoint = no_checkpoint,
    together: bool = False,
    screen: Screen | None = None,
) -> Errors:
    """The table of errors of all parts that the score uses, equal on every process. Its `about` is empty.

    batches: the same ones on every call. groups: name of a set -> group of each unit; other sets are left out.
    group: processes among which the parts are divided, EVERY at a time. together: remove groups of equal rank from all
    layers at once. screen: selects the parts to measure, and estimates the others (None: measure all).
    """
    group = group or Group.current()
    work = _Work(model, batches, score, seed)
    with preserved(model, gradients=False), torch.no_grad(), work.pooled.watching():
        parts = removals(model, groups)
        started = time.perf_counter()
        work.look()
        seconds = time.perf_counter() - started
        left_out = [part.name for part in parts if not work.meets(part)]
        parts = [part for part in parts if work.meets(part)]
        if not parts:
            raise InputError("the score uses none of the removable parts: choose another --score")
        if together:
            parts = joined(model, parts)
        everything = parts
        uncertain = [True] * len(parts) if screen is None else screen.uncertain(model, parts)
        parts = [part for part, wanted in zip(everything, uncertain, strict=True) if wanted]
        saved = checkpoint.load()
        drops = [] if saved is None else saved[0]["drops"].tolist()
        if group.rank == 0:
            _announce(parts, drops, work.samples, seconds, group.size, left_out)
        with progress_bar("parts", len(parts), done=len(drops), show=group.rank == 0) as advance:
            # Processes take parts in a fixed order, so that the table does not depend on their number.
            while len(drops) < len(parts):
                each = min(EVERY, -((len(drops) - len(parts)) // group.size))
                first = len(drops) + group.rank * each
                mine = work.drops(parts[first : first + each], advance if group.rank == 0 else None)
                for rank, found in enumerate(group.objects(mine, list(range(group.size)))):
                    drops += found
                    advance(len(found) if rank else 0)
                so_far = {"drops": torch.tensor(drops, dtype=torch.float64)}
                checkpoint.offer(lambda so_far=so_far: (so_far, {}))
    if screen is not None:
        left = iter(drops)
        drops = screen.filled(model, everything, [next(left) if wanted else None for wanted in uncertain])
    errors: dict[str, list[float]] = {}
    measured: dict[str, Tensor] = {}
    for part, drop in zip(everything, drops, strict=True):
        for one in part.each:
            own = errors.setdefault(one.name, [])
            measured.setdefault(one.name, torch.full((one.one.count,), -1))[one.group] = len(own)
            own.append(drop)
    return Errors({n: torch.tensor(values, dtype=torch.float64) for n, values in errors.items()}, measured, {})


def _memoised(model: Model, parts: Iterable[Removal]) -> list[nn.Module]:
    """Modules whose calls are recorded: all layers, the modules inside layers with parts, and those outside layers.

    Without layers (a convolutional network), the parents of consumers take their place. Outputs are held for one batch.
    """
    inner, found = model.inner, list(all_sets(model))
    outer = [f"{path}.{n}" for one in found if isinstance(one, Layers) for path in one.lists for n in range(one.count)]
    if not outer:
        outer = sorted({one.consumer.rpartition(".")[0].rpartition(".")[0] for one in found} - {""})
    modules = {path: inner.get_submodule(path) for path in outer}
    touched = {id_ for part in parts if isinstance(part.one, Units) for id_ in part.changed}
    for path, module in list(modules.items()):
        if touched & {id(tensor) for tensor in module.parameters()}:
            modules |= {f"{path}.{name}": part for name, part in module.named_modules() if name}
    modules |= dict(_outside_layers(inner, outer, ""))
    return list({id(module): module for module in modules.values()}.values())


def _outside_layers(module: nn.Module, outer: list[str], path: str) -> Iterator[tuple[str, nn.Module]]:
    """The largest modules with weights outside of these layers: embeddings, projections."""
    for name, part in module.named_children():
        at = f"{path}{name}"
        if at in outer or not any(True for _ in part.parameters()):
            continue
        if any(one.startswith(f"{at}.") for one in outer):
            yield from _outside_layers(part, outer, f"{at}.")
        else:
            yield at, part


def _announce(
    parts: Sequence[Removal], done: Sequence[float], samples: int, seconds: float, processes: int, left_out: list[str]
) -> None:
    """Print the amount of work before it starts."""
    left = len(parts) - len(done)
    most = left * seconds / processes
    console.print(
        f"{counted(left, 'part')} to measure on {counted(samples, 'sample')}: {left * samples:,} passes of a sample, "
        f"parts of them; {most:,.0f} s at most (a full pass took {seconds:.1f} s)"
    )
    if left_out:
        console.print(
            f"{counted(len(left_out), 'part', 'is')} not used by this score and will be kept (first: in {left_out[0]})",
            markup=False,
        )


class _Work:
    """Forward passes of the dense model, and of the model without a part."""

    def __init__(self, model: Model, batches: Callable[[], Iterable[Batch]], score: Score, seed: int):
        self.model, self._batches, self._score, self._seed = model, batches, score, seed
        self._device = device_of(model)
        self._moves = any(True for _ in model.moving_tensors())
        self.samples = 0
        self.pooled = Pooled(model)

    def _run(self, run: int, number: int, batch: Batch) -> Tensor:
        """Rows of a batch: the same random draws in every pass; moving tensors are restored."""
        self.pooled.at(run, number)
        return self._pass(run, number, batch)

    def _pass(self, run: int, number: int, batch: Batch) -> Tensor:
        kept = moving_restored(self.model) if self._moves else nullcontext()
        with seeded(self._seed, "unit", number, device=self._device), kept:
            return self._score.runs[run](batch)

    def _data(self) -> Iterator[tuple[int, Batch]]:
        for number, batch in enumerate(self._batches()):
            yield number, to_device(batch, self._device)

    def look(self) -> None:
        """Record the dense model's rows of every run, its score, and the modules and tensors that each run uses."""
        runs = range(len(self._score.runs))
        rows: list[list[Tensor]] = [[] for _ in runs]
        self._met: list[set[int]] = [set() for _ in runs]
        for number, batch in self._data():
            self._batches_seen = number + 1
            for run in runs:
                if self._score.smooth:
                    self.pooled.find(run, number, lambda: self._pass(run, number, batch))  # noqa: B023
                owners = [] if number else [module for module in self.model.inner.modules() if module._parameters]
                handles = [self._note(module, self._met[run]) for module in owners]
                rows[run].append(self._run(run, number, batch))
                for handle in handles:
                    handle.remove()
        self._whole = [torch.cat(part) for part in rows]
        self._value = self._score.value(self._whole)
        self.samples = len(self._whole[0])

    def _note(self, module: nn.Module, met: set[int]) -> torch.utils.hooks.RemovableHandle:
        tensors = {id(tensor) for tensor in module._parameters.values() if tensor is not None}
        return module.register_forward_pre_hook(lambda *_: met.update(tensors))

    def meets(self, part: Removal) -> bool:
        """Whether any run uses the part."""
        return any(part.changed & met for met in self._met)

    def drops(self, parts: Sequence[Removal], advance: Callable[..., None] | None) -> list[float]:
        """Errors of some parts, in one pass over the data."""
        if not parts:
            return []
        runs = [[run for run, met in enumerate(self._met) if part.changed & met] for part in parts]
        needed = sorted({run for own in runs for run in own})
        rows: list[dict[int, list[Tensor]]] = [{run: [] for run in own} for own in runs]
        replay = Replay(_memoised(self.model, parts))
        with replay.watching():
            for number, batch in self._data():
                with replay.record():
                    for run in needed:
                        self._run(run, number, batch)
                for part, own in zip(parts, rows, strict=True):
                    replay.without(part.changed, part.columns)
                    with removed(part):
                        for run in own:
                            own[run].append(self._run(run, number, batch))
                if advance is not None:
                    advance(len(parts) / self._batches_seen)
        values = [
            self._score.value([torch.cat(own[run]) if run in own else whole for run, whole in enumerate(self._whole)])
            for own in rows
        ]
        return [self._value - value for value in values]
