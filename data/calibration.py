"""Calibration batches, {side: batch} for pruners, and the manifest of a mask's calibration data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from console.errors import InputError
from console.words import counted
from data.batches import Sides
from data.images import image_files
from data.readers import Batch, Reader
from storage.hashing import hash_file, hash_json

HASHED_UP_TO = 4 << 30  # bytes; larger files (shards) are known by name and size


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
        self.failed: set[str] = set()  # unreadable images, with the reason
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
            # `failed` has those of this process only
            self._refuse(sorted(self.failed), sum(stop * s.batch_size for s in self.data.sides.values()) // size)
            yield pair, side, loaded.batch

    def check_files(self, pairs: int) -> None:
        """Check that the image files of the first `pairs` steps exist, before the work starts."""
        missing, planned = [], 0
        for side in self.data.sides.values():
            for t in range(min(pairs, side.batches)):
                for index in side.planned(t):
                    planned += 1
                    files = image_files(side.reader.source.file(index))
                    missing += [f"{file} (missing)" for file in files if not Path(file).is_file()]
        self._refuse(missing, planned)

    def _refuse(self, failed: list[str], planned: int) -> None:
        if len(failed) > self._max_missing * planned:
            raise InputError(
                f"{counted(len(failed), 'calibration sample', of=planned)} cannot be read, more than --max_missing "
                f"{self._max_missing:.4g} allows (first: {failed[0]}; paths are relative to {Path.cwd()}): fix the "
                "data or its paths (root, image_roots, folder), or raise --max_missing"
            )


def data_identity(batches: CalibrationBatches) -> dict[str, Any]:
    """The identity of the data: files with hashes, numbers of records, sizes."""
    return {
        name: {
            "files": [_file(path) for path in side.reader.source.paths],
            "records": len(side.reader.source),
            **({"listing": side.reader.source.listing} if side.reader.source.listing else {}),
            "batch_size": side.batch_size,
        }
        for name, side in batches.data.sides.items()
    }


def make_manifest(batches: CalibrationBatches, pairs: int, seed: int, failed: list[str]) -> dict[str, Any]:
    """The manifest of a calibration over `pairs` steps. Its `hash` is over everything else in it.

    used: of each side, the planned indices in order, also those that failed. failed: unreadable images, which were
    replaced by other records. left_out: what the sources have but do not give, such as pictures without a text.
    """
    manifest: dict[str, Any] = {"seed": seed, "steps": pairs, "sides": data_identity(batches), "failed": failed}
    for name, side in batches.data.sides.items():
        records = [index for t in range(pairs) for index in side.planned(t)]
        manifest["sides"][name] |= {"samples": len(records), "distinct": len(set(records)), "used": records}
        if side.reader.source.left_out:
            manifest["sides"][name]["left_out"] = side.reader.source.left_out
    return manifest | {"hash": hash_json(manifest)}


def _file(path: str) -> dict[str, Any]:
    size = Path(path).stat().st_size
    return {"path": path, "bytes": size} | ({"sha256": hash_file(path)} if size <= HASHED_UP_TO else {})
