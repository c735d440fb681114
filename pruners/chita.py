"""CHITA: prune and update weights together, so that what n mini-batch gradients say of the loss changes least.

Benbaki et al., "Fast as CHITA: Neural Network Pruning with Combinatorial Optimization", ICML 2023 (block-wise).
With rows of A the gradients, B the samples a row, d = b - w the change of the weights and mu = n lambda, minimise
    Q(b) = 1/2 |A d|^2 + (1/B) 1'A d + mu/2 |d|^2      over b with N - k non-zeros.
    python prune.py --pruner chita            # one round
    python prune.py --pruner chita --epochs 5 # CHITA++: rounds on the updated weights
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from calibration.gradient_rows import GradientRows
from calibration.preserve import moving_restored, weights_restored
from console.errors import InputError
from models.common.memory import freed_memory_returned, return_freed_memory
from pruners.base import Pruner
from pruners.chita_blocks import solve_layer
from pruners.chita_problem import Problem
from sparsity.allocation import cuts_small_groups
from sparsity.mask import Mask
from sparsity.schedules import SCHEDULES, check_rounds


@dataclass(frozen=True)
class CHITAOptions:
    """lambda_: ridge penalty lambda. epochs: rounds. schedule: sparsity over the rounds. block: weights a block.

    iterations: hard-thresholding steps, globally and in the blocks. scratch_dir: where the gradients may lie.
    """

    lambda_: float = 1e-5
    epochs: int = 1
    schedule: str = "exp"
    block: int = 10_000
    iterations: int = 5
    scratch_dir: str | None = field(default=None, compare=False)  # changes no result

    def __post_init__(self) -> None:
        check_rounds(self.epochs, self.schedule)
        if self.block < 1 or self.iterations < 0:
            raise InputError("chita's block must be at least 1, its iterations at least 0")
        if self.scratch_dir is not None and not Path(self.scratch_dir).is_dir():
            raise InputError(f"scratch_dir {self.scratch_dir} is no folder: make it, or choose another")
        if not self.lambda_ > 0:
            raise InputError(f"--lambda_ must be above 0, not {self.lambda_}: without it the problem has no one answer")


class CHITA(Pruner):
    """Global hard thresholding, then exact block-wise least squares on the support; weights are updated."""

    family = "curvature"
    uses_data = True
    uses_gradients = True
    uses_rounds = True
    resumes = False
    updates_weights = True
    Options = CHITAOptions

    @classmethod
    def plan(cls, options: CHITAOptions, num_batches: int, available: int, masks: int) -> tuple[int | None, int]:
        """`num_batches` rows a round; with one round, the same rows serve every mask."""
        if options.epochs == 1:
            return num_batches, min(num_batches, available)
        return num_batches, num_batches * options.epochs * masks

    def pairs_in_all(self) -> int | None:
        """Those of all rounds."""
        return None if self.work.pairs is None else self.work.pairs * self.options.epochs

    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """Each sparsity from the same weights; the masks carry the updated weights."""
        with freed_memory_returned():
            if self.options.epochs > 1:
                return {sparsity: self._rounds(sparsity) for sparsity in sparsities}
            rows = self._gather_rows(0)
            try:
                return {sparsity: self._prune(rows, sparsity) for sparsity in sparsities}
            finally:
                rows.close()

    def _rounds(self, sparsity: float) -> Mask:
        mask = None
        with weights_restored(self.layers), moving_restored(self.model):
            for turn in range(self.options.epochs):
                rows = self._gather_rows(turn)
                try:
                    reached = SCHEDULES[self.options.schedule](sparsity, turn + 1, self.options.epochs)
                    mask = self._prune(rows, reached, mask)
                finally:
                    rows.close()
                mask.apply(self.model)
        assert mask is not None
        return mask

    def _gather_rows(self, turn: int) -> GradientRows:
        count = self.work.pairs or len(list(self.work.batches))
        folder = self.options.scratch_dir
        rows = GradientRows(self.model, self.layers, count, len(self.work.sides), folder)
        try:
            # In the first round, a row is not taken twice when the data ends early: there are just fewer.
            self.gather(rows, turn * count, (turn + 1) * count, save=False, wrap=turn > 0)
        except BaseException:
            rows.close()
            raise
        return_freed_memory()  # small pieces of the backward passes
        return rows

    def _prune(self, rows: GradientRows, sparsity: float, alive: Mask | None = None) -> Mask:
        """One round: global support, then every layer's blocks on it. Weights dead before stay dead."""
        options = self.options
        problem = Problem(
            self.layers,
            rows,
            options.lambda_,
            options.block,
            options.iterations,
            lambda scores: self.cut(scores, sparsity),
            alive,
            settled=cuts_small_groups(self.allocation_name),
        )
        mask = self.mask_of({})
        with torch.no_grad():
            found = problem.survivors()
            for name in self.layers:
                support, updated = solve_layer(problem, name, found[name].numpy(), found.pop_weights(name))
                mask.add(name, torch.from_numpy(support), torch.from_numpy(updated))
        return mask


@dataclass(frozen=True)
class CHITAPlusPlusOptions(CHITAOptions):
    """The same, in rounds by default."""

    epochs: int = 5


class CHITAPlusPlus(CHITA):
    """CHITA repeated on the updated weights, the sparsity growing from round to round."""

    Options = CHITAPlusPlusOptions
