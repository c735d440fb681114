"""Magnitude pruning in one shot: the smallest |W| go, of the whole model (omp) or of each layer (localmp).

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
        return self.matrix(name).abs()


class LocalMP(OMP):
    """Score |W|, each layer at the sparsity asked for."""

    allocation = "layer"
