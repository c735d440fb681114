"""Say before a run what of other settings it will replace: options and data are no part of its files' names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from console.errors import InputError
from data.records import read_json
from pruners.outputs import Outputs
from storage.tensors import parse_metadata, read_metadata


def replaced(outputs: Outputs, sparsities: Sequence[float], source: dict[str, Any], steps: int | None) -> str | None:
    """What is about to be lost, in a sentence; None where nothing is.

    source: options, weights and precision as masks keep them. steps: batches that one mask's calibration looks at
    (None: no data).
    """
    asked = {outputs.mask(sparsity) for sparsity in sparsities}
    now = _settings(source, steps)
    for path in sorted(outputs.masks(), key=lambda path: path not in asked):
        try:
            about = parse_metadata(path, read_metadata(path), "about", ("source",))  # not the bits, nor CHITA's weights
            before = _settings(about["source"], _steps(outputs.manifest))
        except (InputError, KeyError):  # no mask of such a run, or a damaged one: nothing to lose
            continue
        for name, value in now.items():
            if name in before and before[name] != value:
                goes = "it and" if path in asked else "it stays, but"
                return (
                    f"{path} was made with other settings ({name}: {before[name]}, now {value}): {goes} the scores, "
                    "the picture and the record of calibration beside it will be replaced; --output_dir keeps both"
                )
    return None


def _settings(source: dict[str, Any], steps: int | None) -> dict[str, Any]:
    weights = {"weights": source["weights"]["file"], "sha256 of weights": source["weights"]["sha256"]}
    data = {} if steps is None else {"num_batches": steps}
    return {"model": source["model"]} | source["options"] | weights | {"precision": source["precision"]} | data


def _steps(manifest: Path) -> int | None:
    return read_json(manifest).get("steps") if manifest.is_file() else None
