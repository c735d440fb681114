"""CHITA: prune and update weights together, minimising a quadratic model of the loss from n mini-batch gradients.

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
from pruners.chita_problem import VECTORS, Problem
from sparsity.allocation import allocation_named
from sparsity.mask import Mask
from sparsity.schedules import SCHEDULES, check_rounds


@dataclass(frozen=True)
class CHITAOptions:
    """CHITA's options; `compare=False` marks one that changes no result."""

    lambda_: float = option(1e-5, "ridge penalty")
    epochs: int = option(1, "rounds of pruning; more than 1 is CHITA++", "-e")
    schedule: str = option("exp", "how the sparsity grows over the rounds: exp, linear or const")
    block: int = option(10_000, "weights per block, which are solved for together")
    iterations: int = option(5, "steps of iterative hard thresholding, global and per block")
    scratch_dir: str | None = option(
        None, "folder of the gradient matrix during the run (default: the system's temporary folder)", compare=False
    )

    def __post_init__(self) -> None:
        check_rounds(self.epochs, self.schedule)
        if self.block < 1 or self.iterations < 0:
            raise InputError("chita's block must be at least 1, its iterations at least 0")
        if self.scratch_dir is not None and not Path(self.scratch_dir).is_dir():
            raise InputError(f"scratch_dir {self.scratch_dir} is not a folder: make it, or choose another")
        if not self.lambda_ > 0:
            raise InputError(
                f"--lambda_ must be above 0, not {self.lambda_}: without a ridge the solution is not unique"
            )


class CHITA(Rounds):
    """Global hard thresholding, then exact block-wise least squares on the support; weights are updated."""

    family = "curvature"
    resumes = False
    updates_weights = True
    Options = CHITAOptions

    @classmethod
    def plan(cls, options: CHITAOptions, num_batches: int, available: int, masks: int) -> tuple[int | None, int]:
        """`num_batches` rows a round; those of the first round, of the dense weights, serve every mask."""
        return num_batches, min(num_batches, available) + num_batches * (options.epochs - 1) * masks

    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """Every sparsity starts from the same weights and their gradients; the masks carry the updated weights."""
        with freed_memory_returned():
            with closing(self._gather_rows(0)) as rows:
                self._first = {sparsity: self._prune(rows, sparsity, 0) for sparsity in sparsities}
            return super().masks(sparsities) if self.options.epochs > 1 else self._first

    def rounds(self, sparsity: float, progress: Progress) -> Mask:
        """The rounds after the first: gradient rows of the updated weights, then prune and update those."""
        mask = self._first.pop(sparsity)
        for turn in range(1, self.options.epochs):
            mask.apply(self.model)
            with closing(self._gather_rows(turn)) as rows:
                mask = self._prune(rows, sparsity, turn, mask)
        return mask

    def _gather_rows(self, turn: int) -> GradientRows:
        count = self.work.pairs or len(list(self.work.batches))
        rows = GradientRows(self.model, self.layers, count, len(self.work.sides), self.options.scratch_dir, VECTORS)
        try:
            # If the data ends early in the first round, there are fewer rows: repeated rows would add no information.
            self.gather(rows, turn * count, (turn + 1) * count, save=False, wrap=turn > 0)
        except BaseException:
            rows.close()
            raise
        if turn == 0:
            self.unreached = rows.all_zero()
        return_freed_memory()  # the backward passes leave fragmented memory
        return rows

    def _prune(self, rows: GradientRows, sparsity: float, turn: int, alive: Mask | None = None) -> Mask:
        """One round: global support, then every layer's blocks on it. Weights of earlier rounds stay pruned."""
        options = self.options
        reached = SCHEDULES[options.schedule](sparsity, turn + 1, options.epochs)
        problem = Problem(
            self.layers,
            rows,
            options.lambda_,
            options.block,
            options.iterations,
            lambda scores: self.cut(scores, reached),
            alive,
            settled=allocation_named(self.allocation_name).by_row,
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
