"""How far two masks keep the same weights, against what two random masks of the same densities would.

Among the n weights of a layer of which one mask keeps the share p and the other q, two independent random masks share
p q n weights on average, and together keep (p + q - p q) n: an IoU of about p q / (p + q - p q).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sparsity.mask import Mask


@dataclass(frozen=True)
class Overlap:
    """Two masks on some weights; overlaps of several layers add up, each with its own densities.

    size: weights. a, b: those that either mask keeps. both: kept by both. by_chance: expected in `both` at random.
    """

    size: int = 0
    a: int = 0
    b: int = 0
    both: int = 0
    by_chance: float = 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(*(getattr(self, field) + getattr(other, field) for field in self.__dataclass_fields__))

    @property
    def iou(self) -> float:
        """Weights kept by both among those kept by either; 1 where neither keeps any."""
        return _share(self.both, self.a + self.b - self.both)

    @property
    def chance(self) -> float:
        """The IoU of random masks that are as dense in every layer."""
        return _share(self.by_chance, self.a + self.b - self.by_chance)

    @property
    def overlap(self) -> float:
        """Share of what the sparser mask keeps that the other keeps, too: 1 where it lies within it."""
        return _share(self.both, min(self.a, self.b))

    @property
    def agreement(self) -> float:
        """Share of all weights on which both decide alike, kept or pruned."""
        return _share(self.size - self.a - self.b + 2 * self.both, self.size)


def overlap(a: Mask, b: Mask, kept_a: Mapping[str, int], kept_b: Mapping[str, int]) -> dict[str, Overlap]:
    """Layer -> overlap of two masks of the same layers; kept_...: the weights they keep of each layer."""
    found = {}
    for name in a:
        size, p, q = a.size(name), kept_a[name], kept_b[name]
        found[name] = Overlap(size, p, q, ones(a.bits(name) & b.bits(name)), p * q / max(1, size))
    return found


def ones(bits: np.ndarray) -> int:
    """Number of ones in packed bits (uint8), eight bytes at a time."""
    whole = len(bits) // 8 * 8
    words = np.bitwise_count(bits[:whole].view(np.uint64)).sum(dtype=np.int64)
    return int(words + np.bitwise_count(bits[whole:]).sum(dtype=np.int64))


def together(overlaps: Iterable[Overlap]) -> Overlap:
    """The overlap over several layers."""
    return sum(overlaps, Overlap())


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
