"""LAMP: magnitude, scaled so that one global threshold gives each layer a fair share. No data.

Lee et al., "Layer-adaptive sparsity for the Magnitude-based Pruning", ICLR 2021.
    python prune.py --pruner lamp
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pruners.base import OneShot


class LAMP(OneShot):
    """Score W^2 / sum of all squares of the layer that are at least as large (eq. 4)."""

    family = "layer norms"
    keep_scores = False

    def score(self, name: str) -> Tensor:
        """[o, i]; the largest weight of a layer scores 1, so that no layer empties."""
        weight = self.matrix(name).float().cpu()
        return torch.from_numpy(lamp_scores(weight.numpy()))


def lamp_scores(weight: np.ndarray) -> np.ndarray:
    """LAMP scores of one layer. weight float32, any shape -> float32 of that shape.

    Sums run in float64 from the large end, since most squares are tiny beside the total. Equal weights
    share one score.
    """
    flat = np.abs(weight.reshape(-1))
    # The bits of a non-negative float order as the float does: magnitude above, position below, one sort for both.
    keys = flat.view(np.int32).astype("<i8")
    keys <<= 32
    keys |= np.arange(flat.size, dtype=np.int64)
    keys.sort()
    position, ordered = keys.view("<i4")[0::2], keys.view("<f4")[1::2]
    squares = np.square(ordered, dtype=np.float64)
    at_least = np.cumsum(squares[::-1])[::-1]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    if first.size < flat.size:  # ties: the sum from the first of equal weights on
        at_least = np.repeat(at_least[first], np.diff(np.concatenate([first, [flat.size]])))
    np.divide(squares, at_least, out=squares, where=ordered > 0)  # weights of zero keep their square: zero
    flat[position] = squares
    return flat.reshape(weight.shape)
