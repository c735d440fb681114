"""Wanda: magnitude times the norm of the input it meets, compared within each output row.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024 (eq. 1). One pass over
the data; `--allocation layer` compares within whole layers instead.
    python prune.py --pruner wanda
"""

from __future__ import annotations

from torch import Tensor

from pruners.base import OneShot
from pruners.statistics import InputNorms


class Wanda(OneShot):
    """Score |W_oi| a_i, with a_i the norm of input channel i over real tokens; every row at the same sparsity."""

    allocation = "row"
    uses_data = True

    def calibrate(self) -> None:
        """Gather the norm of every input channel."""
        self.norms = InputNorms(self.model, self.layers)
        self.gather_once(self.norms)

    def score(self, name: str) -> Tensor:
        """[o, i]."""
        return self.matrix(name).abs().float() * self.norms.norms(name)
