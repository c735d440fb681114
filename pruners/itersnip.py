"""IterSNIP: SNIP in rounds; after each, more weights are dead and gradients are taken afresh.

de Jorge et al., "Progressive Skeletonization", ICLR 2021; Verdenius et al., "Pruning via Iterative Ranking of
Sensitivity Statistics", 2020. The paper's setting: 60 rounds of 50 batches.
    python prune.py --pruner itersnip --epochs 60 --num_batches 50
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from calibration.preserve import moving_restored, weights_restored
from calibration.progress import Progress
from calibration.statistics import MeanGradients
from pruners.base import Pruner
from sparsity.mask import Mask
from sparsity.schedules import SCHEDULES, check_rounds
from sparsity.scores import Scores


@dataclass(frozen=True)
class IterSNIPOptions:
    """epochs: rounds of pruning; schedule: how the sparsity grows over them (exp, linear, const)."""

    epochs: int = 60
    schedule: str = "exp"

    def __post_init__(self) -> None:
        check_rounds(self.epochs, self.schedule)


class IterSNIP(Pruner):
    """SNIP's score in rounds; masked weights are zero during a round and stay dead."""

    family = "gradients"
    uses_data = True
    uses_gradients = True
    uses_rounds = True
    Options = IterSNIPOptions

    @classmethod
    def plan(cls, options: IterSNIPOptions, num_batches: int, available: int, masks: int) -> tuple[int | None, int]:
        """`num_batches` a round; the data starts over when it ends."""
        return num_batches, num_batches * options.epochs * masks

    def pairs_in_all(self) -> int | None:
        """Those of all rounds."""
        return None if self.work.pairs is None else self.work.pairs * self.options.epochs

    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """The rounds for each sparsity, each from the same fresh model and the same data."""
        progress = Progress.load(self.work.checkpoint, self.mask_of)
        self.work.advance(progress.pairs_done(self.options.epochs, self.work.pairs))
        for sparsity in sparsities:
            if sparsity not in progress.finished:
                with weights_restored(self.layers), moving_restored(self.model):
                    progress.finished[sparsity] = self._rounds(sparsity, progress)
        return {sparsity: progress.finished[sparsity] for sparsity in sparsities}

    def _rounds(self, sparsity: float, progress: Progress) -> Mask:
        gradients = MeanGradients(self.model, self.layers, self.work.group)
        if progress.alive is not None:
            progress.alive.apply(self.model)
        per_round = self.work.pairs
        for turn in range(progress.turn, self.options.epochs):
            start = 0 if per_round is None else turn * per_round
            stop = None if per_round is None else start + per_round
            gradients.clear()
            if progress.sums is not None:
                gradients.restore(progress.sums)
                start, progress.sums = progress.pairs, None
            self.gather(gradients, start, stop, also=progress.state(turn))
            reached = SCHEDULES[self.options.schedule](sparsity, turn + 1, self.options.epochs)
            progress.alive = self._cut(gradients, progress.alive, reached)
            progress.alive.apply(self.model)
        last, progress.alive, progress.turn = progress.alive, None, 0
        assert last is not None
        return last

    def _cut(self, gradients: MeanGradients, alive: Mask | None, sparsity: float) -> Mask:
        """Prune to `sparsity` overall: what is dead scores below everything else."""
        scores = {}
        for name, layer in self.layers.items():
            saliency = self.forms[name].matrix(gradients.mean(name).mul_(layer.weight).abs_())
            scores[name] = self.to_host(name, saliency)
            if alive is not None:
                scores[name][~alive.matrix(name).numpy()] = -1
        return self.cut(Scores.of(scores), sparsity)
