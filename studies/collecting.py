"""Results made from the files that a finished run wrote, whoever started it: this grid, a shell script or a cluster."""

from __future__ import annotations

import csv
import datetime
import json
import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from console.errors import explain_os_error
from sparsity.percents import percent
from storage.atomic import write_text
from studies.attempts import read_cost
from studies.grid import ZERO_SHOT
from studies.places import Places, short
from studies.plan import PRUNE, Plan, Step
from studies.results import FORMAT, Layers, Record, as_line, has_result
from studies.rows import SHRINK
from studies.version import commit, packages, version


def outcome(step: Step, places: Places) -> dict[str, Any] | None:
    """The metrics of a finished step; None before it is finished, which is certain since scripts write atomically."""
    if step.kind == PRUNE:
        return _pruned(step, places)
    if step.kind == SHRINK:
        return _shrunk(step, places)
    if step.kind == ZERO_SHOT:
        rows = json_in(places.output(step))
        if not isinstance(rows, list) or len(rows) != 1:
            return None
        return {key: value for key, value in rows[0].items() if key != "mask"}
    found = json_in(places.run_folder(step) / "results.json")
    return found.get("metrics") if isinstance(found, dict) else None


def is_done(step: Step, places: Places) -> bool:
    """Whether a step has a result, or the files of a finished run to make one from."""
    return has_result(step, places) or outcome(step, places) is not None


def needed_done(step: Step, places: Places, users_done: bool) -> bool:
    """Whether a step that others need is done: its files exist, or all its users are done and need them no more."""
    there = outcome(step, places) is not None and (step.makes or places.weights(step).is_file())
    return there or (users_done and is_done(step, places))


def collect(step: Step, places: Places, plan: Plan) -> bool:
    """Write the result of a finished step; False if it is not finished.

    Finetuned weights are then removed, unless the grid keeps them or another run learns from them.
    """
    metrics = outcome(step, places)
    if metrics is None:
        return False
    result: dict[str, Any] = {
        "format": FORMAT,
        "id": step.id,
        "grid": places.grid,
        "kind": PRUNE if step.makes else "task",
        "axes": step.axes,
        **(_of_masks(step, places, metrics) if step.makes else _of_mask(step, places, plan.need(step))),
        "metrics": metrics,
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "version": version(),
        "packages": packages(),
        "like": step.like,
        "defined_by": step.identity,
    }
    result = read_cost(places.attempts(step.id)) | result
    result["machine"] = {"threads": result.pop("threads"), "processor": platform.machine()}
    items = None if step.makes else json_in(places.items(step))
    line = as_line({"items_of": step.id, **items}) if isinstance(items, dict) else ""
    write_text(places.result(step.id), Record(result, line).text)
    keeps = plan.grid.file.keep_weights or step.id in plan.users()
    if not (step.makes or step.kind == ZERO_SHOT or keeps):
        _remove_weights(places.run_folder(step), places.made_mask(step))
    return True


def count_layers(path: Path) -> tuple[Layers, int | None]:
    """The layers of a mask file of prune.py, and the number of its model's weights in matrices, prunable or not.

    No layers if the file is no such mask. Imports no torch.
    """
    found: Layers = {}
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            for name, shape in about.get("shapes", {}).items():
                kept = int(np.bitwise_count(file.get_tensor(name)).sum())
                found.setdefault(about["modalities"].get(name, "all"), {})[name] = [kept, math.prod(shape)]
        return found, about.get("source", {}).get("weights_in_matrices")
    except (SafetensorError, OSError, ValueError, KeyError):
        return {}, None


def _of_masks(step: Step, places: Places, metrics: dict[str, Any]) -> dict[str, Any]:
    if step.kind == SHRINK:
        shares = _series(step, places)["shares"]
        counts = {label: (shares[label]["layers"], None) for label in metrics}
    else:
        counts = {percent(sparsity / 100): count_layers(places.made(step, sparsity)) for sparsity in step.sparsities}
    return {
        "sparsities": list(step.sparsities),
        "layers": {label: layers for label, (layers, _) in counts.items()},
        "weights_in_matrices": next(iter(counts.values()))[1],
        "peak_memory_gb": max(row["peak_memory_gb"] for row in metrics.values()),
    }


def _of_mask(step: Step, places: Places, need: Step | None) -> dict[str, Any]:
    mask = None if need is None else short(places.made(need, step.sparsity or 0))
    if step.while_training:
        mask = short(places.made_mask(step))
    found = None if step.kind == ZERO_SHOT else json_in(places.run_folder(step) / "results.json")
    by_modality = (found or {}).get("kept", {}).get("after_training", {}).get("by_modality", {})
    kept = {modality: [count["kept"], count["of"]] for modality, count in by_modality.items()}
    if need is not None and need.kind == SHRINK:  # the task counts the smaller model's weights, not the dense one's
        layers = _series(need, places)["shares"].get(percent((step.sparsity or 0) / 100), {}).get("layers", {})
        kept = {modality: list(map(sum, zip(*counts.values(), strict=True))) for modality, counts in layers.items()}
    return {"mask": mask, "pruned_by": step.needs, "kept": kept}


def _shrunk(step: Step, places: Places) -> dict[str, Any] | None:
    """Share -> the cost of measuring, and [dense, small] of parameters, FLOPs and milliseconds."""
    found = _series(step, places)
    labels = [percent(sparsity / 100) for sparsity in step.sparsities]
    if places.missing(step) or not set(labels) <= found["shares"].keys():
        return None
    seconds = sum(found["seconds"].values())
    same = {"seconds": seconds, "calibration_seconds": seconds, "masks_in_this_run": len(labels)}
    return {
        label: same | {key: value for key, value in found["shares"][label].items() if key != "layers"}
        for label in labels
    }


def _series(step: Step, places: Places) -> dict[str, Any]:
    """What a shrink step wrote last (shrinking/series.py)."""
    return json_in(places.series(step) / "series.json") or {"seconds": {}, "shares": {}}


def _pruned(step: Step, places: Places) -> dict[str, Any] | None:
    table = places.made(step, step.sparsities[0]).with_name("runtimes.csv")
    if places.missing(step) or not table.is_file():
        return None
    with table.open(newline="", encoding="utf-8") as file:
        rows = {row["sparsity"]: row for row in csv.DictReader(file)}
    wanted = [percent(sparsity / 100) for sparsity in step.sparsities]
    if any(name not in rows for name in wanted):
        return None
    numbers = ("seconds", "calibration_seconds", "masks_in_this_run", "peak_memory_gb")
    return {name: {key: float(rows[name][key]) for key in numbers} for name in wanted}


def _remove_weights(folder: Path, mask: Path) -> None:
    """Remove all weights files of a run but the mask, which is small."""
    for pattern in ("*.safetensors", "*.pt", "*.pth", "*.ckpt"):
        for file in (file for file in folder.glob(pattern) if file != mask):
            try:
                file.unlink()
            except OSError as error:
                raise explain_os_error(error, f"remove {file}") from error


def json_in(path: Path) -> Any:
    """The content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
