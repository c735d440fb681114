"""One number for each weight, on disk: for vectors as long as the model that memory should not hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np


class WeightVector:
    """float32 numbers, layer after layer; written over as often as one likes, read by any number of threads."""

    def __init__(self, path: Path, sizes: Mapping[str, int]):
        """sizes: weights of each layer."""
        self._path, self._sizes = path, dict(sizes)
        self._offsets: dict[str, int] = {}
        total = 0
        for name, size in sizes.items():
            self._offsets[name] = total
            total += size
        path.touch()

    def write(self, name: str, start: int, values: np.ndarray) -> None:
        """values [m] of the layer's flattened weights from number `start` on."""
        with self._path.open("r+b", buffering=0) as file:
            file.seek(4 * (self._offsets[name] + start))
            file.write(np.ascontiguousarray(values, dtype=np.float32).data)

    def read(self, name: str) -> np.ndarray:
        """All of a layer, flat."""
        return np.fromfile(self._path, np.float32, self._sizes[name], offset=4 * self._offsets[name])
