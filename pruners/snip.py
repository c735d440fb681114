"""SNIP: sensitivity of the loss to removing a weight, |g W|, with g the mean gradient over batches.

Lee et al., "Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019 (eq. 6).
    python prune.py --pruner snip
"""

from __future__ import annotations

from torch import Tensor

from calibration.statistics import MeanGradients
from pruners.base import OneShot


class SNIP(OneShot):
    """Score |mean gradient * W| of the pretraining loss, the mean over all batches of all sides; one threshold."""

    family = "gradients"
    uses_data = True
    uses_gradients = True

    def calibrate(self) -> None:
        """Sum up gradients over the data."""
        self.gradients = MeanGradients(self.model, self.layers, self.work.group)
        self.gather_once(self.gradients)
        self.unreached = self.gradients.all_zero()

    def score(self, name: str) -> Tensor:
        """[o, i]; written over the gradient, which is not needed any more."""
        # |g W| is the first-order change of the loss when the weight is set to zero.
        return self.forms[name].matrix(self.gradients.mean(name).mul_(self.layers[name].weight).abs_())
