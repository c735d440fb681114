"""LocalMP: magnitude pruning in which every layer loses the same share. No data.

python prune.py --pruner localmp
"""

from __future__ import annotations

from pruners.omp import OMP


class LocalMP(OMP):
    """Score |W|, each layer at the sparsity asked for."""

    allocation = "layer"
