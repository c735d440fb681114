"""What an allocation or a repair measures for itself, in a pass of its own over the calibration data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

from calibration import MEASURES
from calibration.resume import no_checkpoint
from console.errors import InputError
from pruners import PRUNERS
from pruners.base import Pruner
from pruners.streaming import gather_streamed
from sparsity.allocation import allocation_named
from sparsity.groups import parse_pattern


def measures(allocation: str, repair: str | None) -> list[int | None]:
    """The passes besides the method's own: how many steps each reads at the most, None for all."""
    ranked = [MEASURES[allocation].steps] if allocation_named(allocation).ranked else []
    return ranked + ([None] if repair is not None else [])


def uses_loss(method: type[Pruner], allocation: str) -> bool:
    """Whether the masks depend on the model's loss."""
    return method.uses_gradients or (allocation_named(allocation).ranked and MEASURES[allocation].uses_loss)


def check_measures(name: str, allocation: str, repair: str | None, batches: Any = ()) -> None:
    """InputError where a method's masks cannot be repaired, or the batches are over after one pass."""
    if repair is not None and PRUNERS[name].updates_weights:
        raise InputError(
            f"--repair {repair} exchanges weights, but {name} has updated those that it keeps: leave it out"
        )
    if repair is not None and parse_pattern(allocation):
        raise InputError(f"--repair {repair} would break the pattern {allocation}: leave it out")
    if measures(allocation, repair) and isinstance(batches, Iterator):
        what = f"--repair {repair}" if repair else f"the allocation '{allocation}'"
        raise InputError(
            f"{what} reads the calibration data again, but these batches can be read only once: give a list or another "
            "re-iterable instead of a generator"
        )


def rank_layers(pruner: Pruner) -> None:
    """Measure the importance of layers, if the allocation needs it, and pass it on."""
    name = pruner.allocation_name
    if allocation_named(name).ranked:
        measure = MEASURES[name]
        if measure.uses_loss and pruner.model.streamed is not None:
            raise InputError(
                f"the allocation '{name}' computes the loss of the whole model, and --stream holds one block: leave "
                "out --stream, or choose another allocation"
            )
        statistic = measure(pruner.model, pruner.layers)
        gather_apart(pruner, statistic, measure.steps)
        pruner.importance = statistic.importance()
        pruner.allocate = partial(pruner.allocate, importance=pruner.importance)


def gather_apart(pruner: Pruner, statistic: Any, steps: int | None = None) -> None:
    """Feed a statistic the data that the method sees, or so many steps of it; nothing is saved."""
    work = pruner.work
    pairs = work.pairs if steps is None else min(steps, work.pairs or steps)
    pruner.work = dataclasses.replace(work, checkpoint=no_checkpoint, pairs=pairs)
    try:
        if pruner.model.streamed is None:
            pruner.gather(statistic, 0, pairs, save=False, wrap=False)
        else:
            gather_streamed(pruner, statistic)
    finally:
        pruner.work = work
