"""Calibration batches: {side: batch} pairs for pruners, with a record of what they were made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from console.errors import InputError
from console.words import counted
from data.batches import Sides
from data.readers import Batch, Reader


class CalibrationBatches:
    """A re-iterable of {side: batch}; `units` gives single batches to one of several processes."""

    def __init__(
        self,
        readers: dict[str, Reader],
        batch_size: int,
        seed: int,
        num_workers: int = 0,
        limit: int | None = None,
        max_missing: float = 0.05,
    ):
        """limit: pairs to give (default: until the shorter side ends). max_missing: share of images that may fail."""
        self.data = Sides(readers, batch_size, seed)
        self.failed: set[str] = set()  # images that could not be read, with the reason
        self._workers = num_workers
        self._max_missing = max_missing
        self._pairs = self.data.ends if limit is None else min(limit, self.data.ends)

    def __len__(self) -> int:
        return self._pairs

    def __iter__(self) -> Iterator[dict[str, Batch]]:
        pair: dict[str, Batch] = {}
        for _, side, batch in self.units(tuple(self.data.sides), 0, 1, 0, None):
            pair[side] = batch
            if len(pair) == len(self.data.sides):
                yield pair
                pair = {}

    def units(
        self, sides: tuple[str, ...], rank: int, size: int, start: int, stop: int | None, wrap: bool = True
    ) -> Iterator[tuple[int, str, Batch]]:
        """(pair, side, batch) for the units of process `rank` of `size`; beyond the end, new epochs begin (`wrap`)."""
        stop = self._pairs if stop is None else stop if wrap else min(stop, self._pairs)
        wanted = [
            (pair, side)
            for pair in range(start, stop)
            for position, side in enumerate(sides)
            if (pair * len(sides) + position) % size == rank
        ]
        for pair, side, loaded in self.data.load(wanted, self._workers):
            self.failed |= set(loaded.failed)
            self._refuse(sorted(self.failed), sum(stop * s.batch_size for s in self.data.sides.values()))
            yield pair, side, loaded.batch

    def check_files(self, pairs: int) -> None:
        """Look for the image files that the first `pairs` steps will read, before the work starts."""
        missing, planned = [], 0
        for side in self.data.sides.values():
            for t in range(min(pairs, side.batches)):
                for index in side.planned(t):
                    planned += 1
                    file = side.reader.source.file(index)
                    if file is not None and not Path(file).is_file():
                        missing.append(f"{file} (missing)")
        self._refuse(missing, planned)

    def _refuse(self, failed: list[str], planned: int) -> None:
        if len(failed) > self._max_missing * planned:
            raise InputError(
                f"{counted(len(failed), 'calibration image', of=planned)} cannot be read, more than --max_missing "
                f"{self._max_missing:.0%} allows (first: {failed[0]}): mend the image folders, or allow more"
            )
