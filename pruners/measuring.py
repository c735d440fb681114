"""Extra passes over the data: importance of layers for an allocation, statistics for a repair or a choice of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

from calibration import MEASURES
from calibration.resume import no_checkpoint
from calibration.token_choice import Drift, Drifting, Representative
from console.errors import InputError
from pruners import PRUNERS
from pruners.base import Pruner
from pruners.streaming import gather_streamed
from pruners.tokens import CHOSEN
from sparsity.allocation import allocation_named
from sparsity.groups import parse_pattern


def measures(allocation: str, repair: str | None, options: Any) -> list[int | None]:
    """The passes besides the method's own: the largest number of steps that each reads, None for all."""
    ranked = [MEASURES[allocation].steps] if allocation_named(allocation).ranked else []
    drifts = [None] if getattr(options, "tokens", None) == "atv" else []
    return ranked + drifts + ([None] if repair is not None else [])


def uses_loss(method: type[Pruner], allocation: str) -> bool:
    """Whether the masks depend on the model's loss."""
    return method.uses_gradients or (allocation_named(allocation).ranked and MEASURES[allocation].uses_loss)


def check_measures(name: str, allocation: str, repair: str | None, options: Any, batches: Any = ()) -> None:
    """InputError where a method's masks cannot be repaired, or the batches allow a single pass only."""
    if repair is not None and PRUNERS[name].updates_weights:
        raise InputError(
            f"--repair {repair} exchanges weights, but {name} has updated those that it keeps: leave it out"
        )
    if repair is not None and parse_pattern(allocation):
        raise InputError(f"--repair {repair} would break the pattern {allocation}: leave it out")
    if measures(allocation, repair, options) and isinstance(batches, Iterator):
        alone = f"the allocation '{allocation}'" if measures(allocation, None, None) else "--tokens atv"
        what = f"--repair {repair}" if repair else alone
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


def choose_tokens(pruner: Pruner) -> None:
    """Say which tokens count in each block, if an option has them chosen there.

    InputError for a model that names no blocks of text and images.
    """
    tokens, model = getattr(pruner.options, "tokens", None), pruner.model
    if tokens not in CHOSEN:
        return
    if not model.mixed_blocks:
        raise InputError(
            f"--tokens {tokens} chooses among text and image tokens in each block of a language model, and this model "
            "names no such blocks: leave it out, or prune one of the models of docs/generative.md"
        )
    if tokens == "amia":
        pruner.choice = Representative(model).through
        return
    drift = Drift(model)
    gather_apart(pruner, drift)
    pruner.choice = Drifting(model, drift.means()).through


def gather_apart(pruner: Pruner, statistic: Any, steps: int | None = None) -> None:
    """One pass of a statistic over the method's data, or over its first `steps`; nothing is saved."""
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
