"""IterSNIP: SNIP in rounds, with new gradients of the pruned model in each.

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
    """The number of rounds and their schedule."""

    epochs: int = option(60, "rounds of pruning", "-e")
    schedule: str = option("exp", "how the sparsity grows over the rounds: exp, linear or const")

    def __post_init__(self) -> None:
        check_rounds(self.epochs, self.schedule)


class IterSNIP(Rounds):
    """SNIP's score in rounds; pruned weights are zero during a round and stay pruned."""

    family = "gradients"
    Options = IterSNIPOptions

    def rounds(self, sparsity: float, progress: Progress) -> Mask:
        """Gradients of the pruned model, then prune more; repeat."""
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
            if turn == 0:  # later zeros may come from pruning, not from the data
                self.unreached = gradients.all_zero()
            # An early round prunes little, so that later gradients are those of a network close to the final one.
            reached = SCHEDULES[self.options.schedule](sparsity, turn + 1, self.options.epochs)
            progress.alive = self._cut(gradients, progress.alive, reached)
            progress.alive.apply(self.model)
        last, progress.alive, progress.turn = progress.alive, None, 0
        assert last is not None
        return last

    def _cut(self, gradients: MeanGradients, alive: Mask | None, sparsity: float) -> Mask:
        """Prune to `sparsity` overall; pruned weights score below all others, so that they stay pruned."""
        scores = {}
        for name, layer in self.layers.items():
            saliency = self.forms[name].matrix(gradients.mean(name).mul_(layer.weight).abs_())
            scores[name] = self.to_host(name, saliency)
            if alive is not None:
                scores[name][~alive.matrix(name).numpy()] = -1  # masks are nested: nothing pruned returns
        return self.cut(Scores.of(scores), sparsity)
