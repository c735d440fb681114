"""The scores of all layers by name: kept in memory, or computed whenever they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np


class Scores(Mapping[str, np.ndarray]):
    """Parameter name -> scores [o, i], float32 on the CPU; sizes are known without computing anything.

    Scores that come from the weights alone are computed anew at each look: keeping them would cost a second copy of
    the weights. They always lie row by row in memory, however the weights do: selection goes by position.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], compute: Callable[[str], np.ndarray]):
        self.shapes = dict(shapes)
        self._compute = compute

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Scores:
        """Scores that are there already."""
        return cls({name: array.shape for name, array in arrays.items()}, arrays.__getitem__)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.ascontiguousarray(self._compute(name))  # no copy where they do already

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
