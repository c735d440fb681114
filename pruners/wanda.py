"""Wanda: magnitude times the norm of its input channel, compared within each output row.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024 (eq. 1). One pass over
the data; `--allocation layer` compares within whole layers instead.
    python prune.py --pruner wanda
"""

from __future__ import annotations

from torch import Tensor

from pruners.base import InputAware


class Wanda(InputAware):
    """Every row at the same sparsity."""

    family = "inputs"
    allocation = "row"

    def criterion(self, weight: Tensor, norm: Tensor) -> Tensor:
        """|W_oi| a_i, with a_i the norm of input channel i over real tokens."""
        # A weight matters as far as its input is active: |W_oi| a_i is the norm of its contribution to the output.
        return weight.abs().float() * norm
