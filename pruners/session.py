"""One pruning of one model: check the options, run the method, restore the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from torch import nn

from calibration.preserve import preserved
from calibration.processes import Group
from calibration.resume import Checkpoint, no_checkpoint
from calibration.statistics import Layers
from calibration.stream import Batches, check_batches
from configs.options import defining
from configs.schema import parse
from console.errors import InputError
from console.progress import console
from console.words import counted
from models.base import Model
from models.layers import weights_in_matrices
from pruners import PRUNERS, REPAIRS
from pruners.base import Advance, Pruner, Work, silent
from pruners.measuring import check_measures, choose_tokens, measures, rank_layers, uses_loss
from pruners.report import warn_of_collapses
from pruners.streaming import check_streamed
from sparsity.allocation import allocation_named, check_allocation, check_kept
from sparsity.mask import Mask
from sparsity.weighting import LayerWeights, check_competition


class Session:
    """One pruning: the pruner with its statistics and scores, and the masks."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        pruner: str = "multiflow",
        *,
        seed: int = 42,
        allocation: str | None = None,
        repair: str | None = None,
        ids: LayerWeights | None = None,
        num_batches: int | None = None,
        checkpoint: Checkpoint = no_checkpoint,
        advance: Advance = silent,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        **options: Any,
    ):
        if num_batches is not None and num_batches < 1:
            raise InputError(f"num_batches must be at least 1, not {num_batches}")
        if not isinstance(model, Model):
            raise InputError(
                f"a {type(model).__name__} does not say which of its layers can be pruned: wrap it first, "
                "prune(wrap(module, loss=..., forward=...), ...)"
            )
        self.model = model
        self.name = pruner
        self.pruner_class = PRUNERS[pruner]
        if model.streamed is not None:
            check_streamed(pruner)
        self.repair = repair
        self.allocation = allocation or self.pruner_class.allocation
        allocation_named(self.allocation)
        if repair is not None:
            REPAIRS.check(repair)
        self.options = parse(self.pruner_class.Options, options, f"pruner '{pruner}'")
        check_measures(pruner, self.allocation, repair, self.options, batches)
        if self.pruner_class.uses_data or measures(self.allocation, repair, self.options):
            check_batches(batches)
        if self.pruner_class.uses_rounds and isinstance(batches, Iterator):
            raise InputError(
                f"{pruner} reads the calibration data in several rounds, but these batches can be read only once: "
                "give a list or another re-iterable instead of a generator"
            )
        if ids is not None:
            check_competition(self.allocation)
            if not self.pruner_class.takes_ids:
                raise InputError(f"--ids has no effect for {pruner}, which solves each layer by itself: leave it out")
        self._ids = ids
        self.seed = seed
        self._work = Work(
            batches=batches,
            sides=tuple(model.sides),
            seed=seed,
            pairs=num_batches,
            group=Group.current(),
            checkpoint=checkpoint,
            advance=advance,
            autocast=autocast,
        )
        self.pruner: Pruner | None = None
        self.seconds = {"calibration": 0.0, "masks": 0.0}

    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """A mask for each sparsity; the model is restored even after an error."""
        check_sparsities(sparsities)
        with preserved(self.model, self.pruner_class.uses_gradients), ExitStack() as undone:
            self.pruner = self.pruner_class(self.model, self._work, self.options, self.allocation)
            check_allocation(self.allocation, sparsities, self.pruner.shapes)
            if self._ids is not None:
                self.pruner.factors = self._ids.fitted(self.model)
            if self._work.group.rank == 0:
                warn_of_zeros(self.pruner.layers)
            started = time.perf_counter()
            if (preliminary := self._preliminary()) is not None:
                undone.callback(preliminary.undo)
            rank_layers(self.pruner)
            choose_tokens(self.pruner)
            self.pruner.calibrate()
            calibrated = time.perf_counter()
            masks = self.pruner.masks(list(sparsities))
            if self.repair is not None:
                masks = REPAIRS[self.repair](self.pruner, masks)
            self.seconds = {"calibration": calibrated - started, "masks": time.perf_counter() - calibrated}
            if self._work.group.rank == 0:
                warn_of_unreached(self.pruner)
                warn_of_collapses(masks)
        prunable, in_matrices = weights_in_matrices(self.model)
        for sparsity, mask in masks.items():
            try:
                check_kept(self.allocation, mask, sparsity)
            except InputError as error:
                raise InputError(
                    f"{self.name} cannot keep the allocation '{self.allocation}' ({error}): choose another allocation"
                ) from error
            mask.source = {
                "pruner": self.name,
                "allocation": self.allocation,
                **({} if self.repair is None else {"repair": self.repair}),
                "options": defining(self.options),
                "num_batches": self._work.pairs,
                "seed": self.seed,
                "sparsity_asked": sparsity,
                "sparsity_reached": mask.sparsity(),
                "prunable_weights": prunable,
                "weights_in_matrices": in_matrices,
                **({} if self._ids is None else self._ids.identity),
                **(self.model.notes() if uses_loss(self.pruner_class, self.allocation) else {}),
            }
        return masks

    def _preliminary(self) -> Any:
        """A pass that some models need before gradients are meaningful (DINO fits its classifier)."""
        assert self.pruner is not None
        if not needs_preliminary(self.model, self.pruner_class, self.allocation):
            return None
        statistic = self.model.preliminary()
        self.pruner.gather(statistic, 0, self.pruner.pairs_in_all(), save=False, wrap=False)
        statistic.finish()
        return statistic


def needs_preliminary(model: Model, method: type[Pruner], allocation: str) -> bool:
    """Whether such a pass precedes the method's own."""
    return uses_loss(method, allocation) and model.preliminary() is not None


def warn_of_zeros(layers: Layers) -> None:
    """Print a warning if all weights of a layer are zero: no score can rank them."""
    # The first row nearly always shows that a layer is not zero.
    empty = [name for name, layer in layers.items() if not layer.weight[0].any() and not layer.weight.any()]
    if empty:
        console.print(
            f"warning: all weights of {counted(len(empty), 'layer', of=len(layers))} are zero (first: {empty[0]}), so "
            "that their mask is meaningless: check the loaded weights"
        )


def warn_of_unreached(pruner: Pruner) -> None:
    """Print a warning if the data does not reach a layer, such as an expert without tokens."""
    if names := pruner.unreached:
        console.print(
            "warning: the calibration data does not reach "
            f"{counted(len(names), 'layer', of=len(pruner.layers))} (first: {', '.join(names[:3])}): their masks "
            "follow from magnitudes or positions only; exclude them, or give more batches"
        )


def check_sparsities(sparsities: Sequence[float]) -> None:
    """InputError unless all are different numbers in (0, 1)."""
    if isinstance(sparsities, int | float | str):
        raise InputError(f"sparsities must be a list or tuple, for example (0.75,), not {sparsities!r}")
    if not sparsities:
        raise InputError("no sparsity given: ask for at least one, for example 0.75")
    for sparsity in sparsities:
        if not isinstance(sparsity, int | float) or not 0 < sparsity < 1:
            raise InputError(
                f"sparsity {sparsity!r} is not between 0 and 1 (shares of weights to prune, both excluded)"
            )
    if len(set(sparsities)) < len(sparsities):
        raise InputError(f"a sparsity is given twice: {', '.join(map(str, sparsities))}")
