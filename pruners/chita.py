"""CHITA: prune and update weights together, so that what n mini-batch gradients say of the loss changes least.

Benbaki et al., "Fast as CHITA: Neural Network Pruning with Combinatorial Optimization", ICML 2023 (block-wise).
With rows of A the gradients, B the samples a row, d = b - w the change of the weights and mu = n lambda, minimise
    Q(b) = 1/2 |A d|^2 + (1/B) 1'A d + mu/2 |d|^2      over b with N - k non-zeros.
    python prune.py --pruner chita            # one round
    python prune.py --pruner chita --epochs 5 # CHITA++: rounds on the updated weights
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from calibration.gradient_rows import GradientRows
from calibration.progress import Progress
from configs.options import option
from console.errors import InputError
from models.common.memory import freed_memory_returned, return_freed_memory
from pruners.base import Rounds
from pruners.chita_blocks import solve_layer
from pruners.chita_problem import Problem
from sparsity.allocation import cuts_small_groups
from sparsity.mask import Mask
from sparsity.schedules import SCHEDULES, check_rounds


@dataclass(frozen=True)
class CHITAOptions:
    """CHITA's; `compare` is off where an option changes no result."""

    lambda_: float = option(1e-5, "ridge penalty")
    epochs: int = option(1, "rounds of pruning; more than 1 makes chita chita++", "-e")
    schedule: str = option("exp", "how the sparsity grows over the rounds: exp, linear or const")
    block: int = option(10_000, "weights that are solved for together")
    iterations: int = option(5, "steps of hard thresholding, of the whole and of each block")
    scratch_dir: str | None = option(
        None, "where gradients lie meanwhile (default: the system's temporary folder)", compare=False
    )

    def __post_init__(self) -> None:
        check_rounds(self.epochs, self.schedule)
        if self.block < 1 or self.iterations < 0:
            raise InputError("chita's block must be at least 1, its iterations at least 0")
        if self.scratch_dir is not None and not Path(self.scratch_dir).is_dir():
            raise InputError(f"scratch_dir {self.scratch_dir} is no folder: make it, or choose another")
        if not self.lambda_ > 0:
            raise InputError(f"--lambda_ must be above 0, not {self.lambda_}: without it the problem has no one answer")


class CHITA(Rounds):
    """Global hard thresholding, then exact block-wise least squares on the support; weights are updated."""

    family = "curvature"
    resumes = False
    updates_weights = True
    Options = CHITAOptions

    @classmethod
    def plan(cls, options: CHITAOptions, num_batches: int, available: int, masks: int) -> tuple[int | None, int]:
        """`num_batches` rows a round; with one round, the same rows serve every mask."""
        if options.epochs == 1:
            return num_batches, min(num_batches, available)
        return super().plan(options, num_batches, available, masks)

    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """Each sparsity from the same weights; the masks carry the updated weights."""
        with freed_memory_returned():
            if self.options.epochs > 1:
                return super().masks(sparsities)
            with closing(self._gather_rows(0)) as rows:
                return {sparsity: self._prune(rows, sparsity) for sparsity in sparsities}

    def rounds(self, sparsity: float, progress: Progress) -> Mask:
        """Rows of what is left, more pruned and the rest updated by them, and again."""
        mask = None
        for turn in range(self.options.epochs):
            reached = SCHEDULES[self.options.schedule](sparsity, turn + 1, self.options.epochs)
            with closing(self._gather_rows(turn)) as rows:
                mask = self._prune(rows, reached, mask)
            mask.apply(self.model)
        assert mask is not None
        return mask

    def _gather_rows(self, turn: int) -> GradientRows:
        count = self.work.pairs or len(list(self.work.batches))
        rows = GradientRows(self.model, self.layers, count, len(self.work.sides), self.options.scratch_dir)
        try:
            # In the first round, a row is not taken twice when the data ends early: there are just fewer.
            self.gather(rows, turn * count, (turn + 1) * count, save=False, wrap=turn > 0)
        except BaseException:
            rows.close()
            raise
        if turn == 0:
            self.unreached = rows.all_zero()
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

    epochs: int = option(5, "rounds of pruning", "-e")


class CHITAPlusPlus(CHITA):
    """CHITA repeated on the updated weights, the sparsity growing from round to round."""

    Options = CHITAPlusPlusOptions
