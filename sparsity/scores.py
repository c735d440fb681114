"""The scores of all layers by name: held in memory, or computed on each access."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np


class Scores(Mapping[str, np.ndarray]):
    """Parameter name -> scores [o, i], float32 on the CPU; sizes are known without computing anything.

    Scores that follow from the weights are computed on each access: holding them would cost a second copy of the
    weights. They are always contiguous row by row, since ties are broken by position.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], compute: Callable[[str], np.ndarray]):
        self.shapes = dict(shapes)
        self._compute = compute

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Scores:
        """Scores held in memory."""
        return cls({name: array.shape for name, array in arrays.items()}, arrays.__getitem__)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.ascontiguousarray(self._compute(name))  # no copy if already contiguous

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def size(self, name: str) -> int:
        """Number of weights of a layer."""
        return int(np.prod(self.shapes[name]))

    def total(self) -> int:
        """Number of weights of all layers."""
        return sum(map(self.size, self.shapes))

    def only(self, names: Iterable[str]) -> Scores:
        """The same scores of some layers."""
        return Scores({name: self.shapes[name] for name in names}, self._compute)
