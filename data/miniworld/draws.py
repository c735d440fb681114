"""Random draws that are the same on every machine and under every library version.

NumPy and Python promise no stable streams across versions, so the mini world draws from splitmix64
(Steele, Lea and Flood 2014): the n-th number is a fixed mixing of `key + n * GOLDEN`, integers only.
The key is hashed from a seed and a path of names and numbers, so every scene and every text has a stream
of its own that does not depend on what was drawn before it, or by which process.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FNV_START, _FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3


def mix(number: int) -> int:
    """Splitmix64's finaliser: a bijection of the 64-bit integers that looks random."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


@functools.lru_cache(maxsize=4096)
def _step(step: str | int) -> int:
    """64 bits for one step of a path: FNV-1a over the bytes of a name; a number is mixed."""
    if isinstance(step, int):
        return mix((step + _GOLDEN) & _MASK)
    value = _FNV_START
    for byte in step.encode("utf-8"):
        value = ((value ^ byte) * _FNV_PRIME) & _MASK
    return value


class Draws:
    """A stream of draws named by a seed and a path, e.g. `Draws(0, "scene", "itr_test", 17)`."""

    __slots__ = ("count", "key")

    def __init__(self, seed: int, *path: str | int) -> None:
        key = mix((seed + _GOLDEN) & _MASK)
        for step in path:
            key = mix((key * 3 + _step(step)) & _MASK)
        self.key = key
        self.count = 0

    def bits(self) -> int:
        """The next 64 random bits, as a non-negative integer."""
        self.count += 1
        return mix((self.key + self.count * _GOLDEN) & _MASK)

    def uniform(self) -> float:
        """A float in [0, 1) with 53 random bits (exact in IEEE doubles)."""
        return (self.bits() >> 11) * 2.0**-53

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + ((self.bits() * (high - low + 1)) >> 64)

    def choice(self, items: Sequence[Item]) -> Item:
        """One of `items`, each as likely as the others."""
        return items[(self.bits() * len(items)) >> 64]

    def weighted(self, weights: Sequence[int]) -> int:
        """An index drawn in proportion to integer `weights` (integers keep it exact)."""
        left = (self.bits() * sum(weights)) >> 64
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        raise ValueError("the weights must hold at least one positive integer")

    def shuffled(self, items: Sequence[Item]) -> list[Item]:
        """A new list of `items` in random order (Fisher and Yates)."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = (self.bits() * (last + 1)) >> 64
            result[last], result[other] = result[other], result[last]
        return result

    def sample(self, items: Sequence[Item], count: int) -> list[Item]:
        """`count` different items in random order."""
        return self.shuffled(items)[:count]

    def noise(self, *shape: int) -> np.ndarray:
        """uint8 noise of the given shape, every value in [0, 255] equally likely."""
        size = int(np.prod(shape))
        words = -(-size // 8)
        counter = np.arange(self.count + 1, self.count + 1 + words, dtype=np.uint64)
        self.count += words
        z = counter * np.uint64(_GOLDEN) + np.uint64(self.key)  # unsigned arrays wrap, as the mask does above
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return z.astype("<u8").view(np.uint8)[:size].reshape(shape)  # little-endian on every machine
