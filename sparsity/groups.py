"""Cuts within small groups of a layer: each output row, or every m neighbouring inputs of a row (n:m)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from console.errors import InputError
from sparsity.mask import Mask
from sparsity.select import Cut


@dataclass(frozen=True)
class GroupCut:
    """Prune the lowest scores among every `width` neighbours in a row; ties are broken by position.

    pruned: number of pruned weights in the whole layer, spread over its groups evenly up to one.
    """

    pruned: int
    width: int

    def keep(self, scores: np.ndarray) -> np.ndarray:
        """scores [o, i] float32 -> boolean [o, i], True where the weight stays."""
        groups = scores.reshape(-1, self.width)
        pruned = self.pruned_by_group(len(groups))[:, None]
        low = self.pruned // len(groups)
        ordered = np.partition(groups, sorted({max(low - 1, 0), min(low, self.width - 1)}), axis=1)
        value = np.take_along_axis(ordered, np.maximum(pruned - 1, 0), axis=1)
        ties = pruned - np.count_nonzero(groups < value, axis=1, keepdims=True)
        equal = groups == value
        kept = (groups > value) | (equal & (np.cumsum(equal, axis=1) > ties)) | (pruned == 0)
        return kept.reshape(scores.shape)

    def pruned_by_group(self, groups: int) -> np.ndarray:
        """Pruned weights per group [groups]. The remainder goes to the first groups, so that masks of rising sparsity
        are nested.
        """
        low, more = divmod(self.pruned, groups)
        return low + (np.arange(groups) < more)


@dataclass(frozen=True, eq=False)
class GuardedCut:
    """A cut that protects the best scores of every few neighbours: an intermediate round towards a pattern n:m.

    best: the protected weights, one bit each, computed once, since the scores are read many times for one cut.
    """

    cut: Cut
    best: np.ndarray

    def keep(self, scores: np.ndarray) -> np.ndarray:
        """scores [o, i] float32 -> boolean [o, i], True where the weight stays."""
        return self.cut.keep(guarded(scores, self.best))


def guarded(scores: np.ndarray, best: np.ndarray) -> np.ndarray:
    """scores [o, i] with those at the bits of `best` above everything else."""
    spared = np.unpackbits(best, count=scores.size).view(bool).reshape(scores.shape)
    return np.where(spared, np.float32("inf"), scores)


def parse_pattern(name: str) -> tuple[int, int] | None:
    """'2:4' -> (2, 4), keep 2 of 4; None where the name is no pattern; InputError for an impossible one."""
    kept, colon, width = name.partition(":")
    if not colon or not kept.isdigit() or not width.isdigit():
        return None
    n, m = int(kept), int(width)
    if not 0 < n < m:
        raise InputError(f"the pattern {name} keeps {n} of every {m}: give n:m with 0 < n < m, for example 2:4")
    return n, m


def check_pattern(mask: Mask, kept: int, width: int) -> None:
    """InputError naming the first layer in which not every group of `width` inputs keeps exactly `kept`."""
    for name in mask:
        rows = mask.matrix(name)
        groups = rows.reshape(-1, width) if rows.shape[1] % width == 0 else None
        if groups is None or bool((groups.sum(dim=1) != kept).any()):
            raise InputError(f"layer '{name}' does not keep {kept} of every {width} inputs")
