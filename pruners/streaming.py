"""One pass over the calibration data of a streamed model: the units in lock step, block by block."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from calibration.layer_inputs import watching
from calibration.lock_step import AT_ONCE, START, LockStep
from calibration.stream import Unit, device_of, stream, to_device
from console.errors import InputError
from console.interrupt import interrupt
from models.base import Model
from models.layers import weights_in_matrices
from pruners import PRUNERS
from sparsity.mask import Mask
from storage.space import check_room

if TYPE_CHECKING:
    from calibration.hessians import InputHessians
    from calibration.statistics import InputSums
    from pruners.base import Pruner
    from pruners.settings import Settings

    InputStatistic = InputSums | InputHessians

Done = Callable[[list[str]], None]


def gather_streamed(
    pruner: Pruner, statistic: InputStatistic, start: int = 0, behind: int | None = None, done: Done | None = None
) -> None:
    """Feed the units from step `start` on to a statistic of inputs, in the order of their numbers.

    behind: the last block whose sums are in the checkpoint; it concerns the first chunk only. done: called after each
    block with its layers, whose statistics are then complete, and at the end with the layers outside of all blocks.
    With `done` all units run as one chunk, and nothing is checkpointed.
    """
    work = pruner.work
    seen = 0
    for chunk in _chunks(pruner, start, AT_ONCE if done is None else None):
        first = start + seen // len(work.sides)
        seen += _run(pruner, statistic, chunk, first, behind, done)
        behind = None
        pairs = start + seen // len(work.sides)
        if done is None:
            work.checkpoint.offer(lambda pairs=pairs: (statistic.state(), {"pairs": pairs}))
    if seen == 0 and start == 0:
        raise InputError("the calibration data is empty: give at least one batch")


def _chunks(pruner: Pruner, start: int, size: int | None) -> Iterator[list[Unit]]:
    """This process's units in chunks of `size` units of all processes (None: one chunk).

    A chunk may be empty here: every process takes part in each one.
    """
    work = pruner.work
    units = stream(work.batches, work.sides, work.group, start, work.pairs)
    groups = itertools.groupby(units, lambda unit: 0 if size is None else unit.index // size)
    while True:
        chunk = list(next(groups, (0, ()))[1])
        if not any(work.group.objects(len(chunk))):
            return
        yield chunk


def _run(
    pruner: Pruner, statistic: InputStatistic, chunk: list[Unit], first: int, behind: int | None, done: Done | None
) -> int:
    """Run a chunk of units through the model; returns their number, of all processes."""
    work, model, device = pruner.work, pruner.model, device_of(pruner.model)
    chunk = [dataclasses.replace(unit, batch=to_device(unit.batch, device)) for unit in chunk]  # hooks read it, too
    runs = [lambda unit=unit: pruner.see(model.observe, unit, device) for unit in chunk]
    lock, share = LockStep(model.streamed, runs), len(model.streamed.blocks) + 1
    counted = 0

    def leave(block: int) -> None:
        """After the last pass through a block."""
        if done is not None:
            done(_layers_of(pruner, block))
        elif behind is None or block > behind:
            work.checkpoint.offer(lambda: (statistic.state(), {"pairs": first, "block": block}))

    turns = lock.steps(work.group, device, first * len(work.sides) % work.group.size)
    with watching(model, lambda: chunk[lock.turn].batch, statistic.look, statistic.choice), closing(turns):
        for block, ranks in turns:
            if ranks is None:
                leave(block)
                continue
            statistic.close()
            if behind is not None and block <= behind:  # the checkpoint has its sums, but not its output states
                statistic.drop()
            else:
                statistic.merge(work.group, ranks)
            work.advance(len(ranks) / len(work.sides) / share)
            if done is not None:
                interrupt.check()
            counted += len(ranks) if block == START else 0
    if done is not None:
        done([name for name in pruner.layers if not any(name in _layers_of(pruner, b) for b in range(share - 1))])
    return counted


def streamable(args: argparse.Namespace, settings: Settings) -> Settings:
    """The settings of a pruning with --stream: without a file of all scores.

    InputError for what cannot be had block by block.
    """
    config = settings.config
    check_streamed(config.pruner)
    if not str(args.model).startswith("hf:"):
        raise InputError(f"--stream reads folders of Hugging Face (hf:FOLDER), and {args.model} is none: leave it out")
    if config.accelerator == "mps":
        raise InputError("--stream runs on the CPU or a GPU, not on mps: choose --accelerator cpu")
    if str(config.precision) != "32-true":
        raise InputError(f"--stream computes in 32-true, not in {config.precision}: leave out --precision")
    if args.save_scores:
        raise InputError(
            "--save_scores would write four bytes for each weight of a model that is streamed: leave it out"
        )
    return dataclasses.replace(settings, config=dataclasses.replace(config, save_scores=False))


def check_streamed(name: str) -> None:
    """InputError for a method with gradients, whose backward pass needs the whole model."""
    if PRUNERS[name].uses_gradients:
        others = ", ".join(one for one in PRUNERS if not PRUNERS[one].uses_gradients)
        raise InputError(
            f"{name} looks at gradients of the loss, for which the whole model must be in memory, and --stream holds "
            f"one block: leave out --stream, or choose one of {others}"
        )


def check_disk(model: Model, folder: Path, sparsities: Sequence[float], updates: bool) -> None:
    """InputError, before the calibration, when a folder has no room for the model at each sparsity.

    updates: whether kept weights are there as well, float32: as they are made, in the masks, and, until the models are
    written, in parts for --resume.
    """
    kept = int(4 * weights_in_matrices(model)[0] * sum(1 - sparsity for sparsity in sparsities)) if updates else 0
    needed = 2 * kept + max(kept, len(sparsities) * model.streamed.size)
    check_room(folder, needed, "to write the model with its zeros")


def write_sparse(model: Model, mask: Mask, folder: Path) -> None:
    """The folder that a streamed model is read from, with the mask's zeros (and updated weights) in its shards."""

    def changed(name: str, tensor: Tensor) -> Tensor:
        if name not in mask:
            return tensor
        if mask.has_values:
            return torch.from_numpy(mask.weights(name)).to(tensor.dtype)
        return tensor.masked_fill(~mask[name], 0)

    model.streamed.write(folder, changed)


def _layers_of(pruner: Pruner, block: int) -> list[str]:
    """Names of the prunable layers of a block; none of START."""
    if block == START:
        return []
    own = set(map(id, pruner.model.streamed.blocks[block].parameters()))
    return [name for name, layer in pruner.layers.items() if id(layer.weight) in own]
