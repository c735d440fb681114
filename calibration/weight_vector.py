"""A vector on disk with one number per weight, which would be as large as the model in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np


class WeightVector:
    """float32 numbers, layer after layer; it can be overwritten, and read by several threads."""

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
