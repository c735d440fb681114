"""MULTIFLOW: keep the weights that carry the most signal, under a prior that keeps each modality its share.

Farina et al., "MULTIFLOW: Shifting Towards Task-Agnostic Vision-Language Pruning", CVPR 2024, eq. 3-8.
One pass over the calibration data, no gradients.
    python prune.py --pruner multiflow
"""

from __future__ import annotations

from torch import Tensor

from pruners.base import OneShot
from pruners.statistics import InputNorms


class Multiflow(OneShot):
    """Information flow as criterion, the multimodal prior as allocation."""

    allocation = "multimodal"
    uses_data = True

    def calibrate(self) -> None:
        """Gather the norm of every input channel."""
        self.norms = InputNorms(self.model, self.layers)
        self.gather_once(self.norms)

    def score(self, name: str) -> Tensor:
        """Scores [o, i] of a layer."""
        return flow_scores(self.matrix(name), self.norms.norms(name))


def flow_scores(weight: Tensor, norm: Tensor) -> Tensor:
    """Eq. 3-6. weight [o, i], norm [i] of the input channels -> scores [o, i] float32.

    Signal that reaches output o: mean over i of |W_oi| a_i. Signal that input i emits: a_i times the mean over o
    of |W_oi|. Score: reached signal * |W| * emitted signal.
    """
    _, i = weight.shape
    magnitude = weight.abs().float()
    reached = magnitude @ norm / i
    emitted = norm * magnitude.mean(dim=0)
    return magnitude.mul_(reached[:, None]).mul_(emitted[None, :])
