"""IterSNIP: SNIP in rounds; after each, more weights are dead and gradients are taken afresh.

de Jorge et al., "Progressive Skeletonization", ICLR 2021; Verdenius et al., "Pruning via Iterative Ranking of
Sensitivity Statistics", 2020. The paper's setting: 60 rounds of 50 batches.
    python prune.py --pruner itersnip --epochs 60 --num_batches 50
"""

from __future__ import annotations

from dataclasses import dataclass

from calibration.progress import Progress
from calibration.statistics import MeanGradients
from configs.options import option
from pruners.base import Rounds
from sparsity.mask import Mask
from sparsity.schedules import SCHEDULES, check_rounds
from sparsity.scores import Scores


@dataclass(frozen=True)
class IterSNIPOptions:
    """Of the rounds."""

    epochs: int = option(60, "rounds of pruning", "-e")
    schedule: str = option("exp", "how the sparsity grows over the rounds: exp, linear or const")

    def __post_init__(self) -> None:
        check_rounds(self.epochs, self.schedule)


class IterSNIP(Rounds):
    """SNIP's score in rounds; masked weights are zero during a round and stay dead."""

    family = "gradients"
    Options = IterSNIPOptions

    def rounds(self, sparsity: float, progress: Progress) -> Mask:
        """Gradients of what is left, more pruned by them, and again."""
        gradients = MeanGradients(self.model, self.layers, self.work.group)
        if progress.alive is not None:
            progress.alive.apply(self.model)
        for turn in range(progress.turn, self.options.epochs):
            start, stop = self.span(turn)
            gradients.clear()
            if progress.sums is not None:
                gradients.restore(progress.sums)
                start, progress.sums = progress.pairs, None
            self.gather(gradients, start, stop, also=progress.state(turn))
            if turn == 0:  # later zeros may come from what was pruned
                self.unreached = gradients.all_zero()
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
