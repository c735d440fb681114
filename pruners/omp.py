"""OMP, one-shot magnitude pruning: the smallest |W| of the whole model go.

Han et al., NeurIPS 2015 (magnitude as criterion); global threshold. No data.
    python prune.py --pruner omp
"""

from __future__ import annotations

from torch import Tensor

from pruners.base import OneShot


class OMP(OneShot):
    """Score |W|, one threshold over all layers."""

    keep_scores = False

    def score(self, name: str) -> Tensor:
        """|W| [o, i]."""
        return self.matrix(name).abs()
