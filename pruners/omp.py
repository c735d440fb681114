"""One-shot magnitude pruning: the smallest |W| are pruned, over the whole model (omp) or in each layer (localmp).

Han et al., NeurIPS 2015 (magnitude as criterion). No data.
    python prune.py --pruner omp
"""

from __future__ import annotations

from torch import Tensor

from pruners.base import OneShot


class OMP(OneShot):
    """Score |W|, one threshold over all layers."""

    family = "magnitudes"
    keep_scores = False

    def score(self, name: str) -> Tensor:
        """|W| [o, i]."""
        # One global threshold compares layers of different scale as they are: l2 and lamp correct for that.
        return self.matrix(name).abs()


class LocalMP(OMP):
    """Score |W|, every layer at the same sparsity."""

    allocation = "layer"
