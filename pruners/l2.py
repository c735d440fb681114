"""L2: magnitude relative to the layer's norm, |W| / ||W||_F, so that layers of different scale are comparable. No data.

python prune.py --pruner l2
"""

from __future__ import annotations

import torch
from torch import Tensor

from pruners.base import OneShot


class L2(OneShot):
    """Score |W| / ||W||_F, one threshold over all layers."""

    family = "layer norms"
    keep_scores = False

    def score(self, name: str) -> Tensor:
        """[o, i]; an all-zero layer scores zero."""
        weight = self.matrix(name)
        norm = torch.linalg.vector_norm(weight, dtype=torch.float64)  # float64: squares of small weights add up
        return weight.abs() / norm.float().clamp(min=torch.finfo(torch.float32).tiny)
