"""Random pruning, the baseline below every other method. No data.

python prune.py --pruner rand --seed 0
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.randomness import derive_seed
from pruners.base import OneShot


class Rand(OneShot):
    """Uniform random scores drawn from the seed and the layer's name, one threshold over all layers."""

    keep_scores = False
    draws = True

    def score(self, name: str) -> Tensor:
        """[o, i] in [0, 1), drawn on the CPU: the same on every device and for every order of layers."""
        generator = torch.Generator().manual_seed(derive_seed(self.work.seed, name))
        return torch.rand(self.shapes[name], generator=generator)
