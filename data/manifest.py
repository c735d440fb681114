"""The calibration manifest: files, records and failures, so that a mask can say what it was calibrated on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.calibration import CalibrationBatches
from storage.hashing import hash_file, hash_json

HASHED_UP_TO = 4 << 30  # bytes; larger files (shards) are known by name and size


def data_identity(batches: CalibrationBatches) -> dict[str, Any]:
    """What defines the data before a batch is read: files with hashes, numbers of records, sizes."""
    return {
        name: {
            "files": [_file(path) for path in side.reader.source.paths],
            "records": len(side.reader.source),
            **({"listing": side.reader.source.listing} if hasattr(side.reader.source, "listing") else {}),
            "batch_size": side.batch_size,
        }
        for name, side in batches.data.sides.items()
    }


def make_manifest(batches: CalibrationBatches, pairs: int, seed: int, failed: list[str]) -> dict[str, Any]:
    """The manifest of a calibration over `pairs` steps. Its `hash` is over everything else in it.

    records: for each side, the indices used in their order (those of failed images included).
    failed: images that could not be read; other records were drawn in their place. left_out, where there is some: of
    each shard what is no pair, of class folders what is no image.
    """
    manifest: dict[str, Any] = {"seed": seed, "steps": pairs, "sides": data_identity(batches), "failed": failed}
    for name, side in batches.data.sides.items():
        records = [index for t in range(pairs) for index in side.planned(t)]
        manifest["sides"][name] |= {"samples": len(records), "distinct": len(set(records)), "used": records}
        if left_out := getattr(side.reader.source, "left_out", []):
            manifest["sides"][name]["left_out"] = left_out
    return manifest | {"hash": hash_json(manifest)}


def _file(path: str) -> dict[str, Any]:
    size = Path(path).stat().st_size
    return {"path": path, "bytes": size} | ({"sha256": hash_file(path)} if size <= HASHED_UP_TO else {})
