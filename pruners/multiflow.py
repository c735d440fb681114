"""MULTIFLOW: keep the weights that carry the most signal, at the same sparsity in every modality.

Farina et al., "MULTIFLOW: Shifting Towards Task-Agnostic Vision-Language Pruning", CVPR 2024, eq. 3-8.
One pass over the calibration data, no gradients.
    python prune.py --pruner multiflow
--no-reached and --no-emitted leave a part of the score out; configs/experiments/ablation.yaml measures each.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from configs.options import option
from pruners.base import InputAware
from pruners.tokens import TokenOptions


@dataclass(frozen=True)
class MultiflowOptions(TokenOptions):
    """Parts of the score. Without both it is |W|, as for omp, which needs no data."""

    reached: bool = option(True, "multiply the score by the signal that reaches the output")
    emitted: bool = option(True, "multiply the score by the signal that the input emits")


class Multiflow(InputAware):
    """Information flow as criterion, the multimodal prior as allocation."""

    allocation = "multimodal"
    Options = MultiflowOptions

    def criterion(self, weight: Tensor, norm: Tensor) -> Tensor:
        """Scores [o, i]."""
        return flow_scores(weight, norm, self.options.reached, self.options.emitted)


def flow_scores(weight: Tensor, norm: Tensor, reached: bool = True, emitted: bool = True) -> Tensor:
    """Eq. 3-6. weight [o, i], norm [i] of the input channels -> scores [o, i] float32.

    Signal that reaches output o: mean over i of |W_oi| a_i. Signal that input i emits: a_i times the mean over o
    of |W_oi|. Score: reached signal * |W| * emitted signal; a part that is switched off counts as 1.
    """
    o, i = weight.shape
    magnitude = weight.abs().float()
    # Both factors are computed from |W| before it is scaled in place, so that no second matrix [o, i] is needed.
    arriving = magnitude @ norm / i if reached else None
    leaving = norm * magnitude.mean(dim=0) if emitted else None
    if arriving is not None:
        magnitude.mul_(arriving.view(o, 1))
    if leaving is not None:
        magnitude.mul_(leaving.view(1, i))
    return magnitude
