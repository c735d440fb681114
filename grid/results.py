"""The result of a run, `results/<grid>/<run>/result.json`: made of what the scripts left, once that is whole.

A run is done when its script's last file is there; the scripts write files whole or not at all. So a result can be
made again from the work, whoever did it: this grid, another one, a shell script or a cluster.
"""

from __future__ import annotations

import csv
import datetime
import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.errors import explain_os_error
from grid.attempts import Cost, read_cost
from grid.layers import count_layers, weights_in_matrices
from grid.places import Places, short
from grid.schema import ZERO_SHOT
from grid.steps import PRUNE, Step
from grid.version import commit, packages, version
from sparsity.percents import percent
from storage.atomic import atomic_path, write_json

FORMAT = 1

NEEDED = ("format", "id", "axes", "metrics", "version", "like")
"""Without these, a file is no result."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run measured; items: its file of single items' scores, if it wrote one."""

    metrics: dict[str, Any]
    items: Path | None = None
    peak_memory_gb: float | None = None


def outcome(step: Step, places: Places) -> Outcome | None:
    """What the work of a step has come to; None while it is not finished."""
    if step.kind == PRUNE:
        return _pruned(step, places)
    if step.kind == ZERO_SHOT:
        rows = _json(places.output(step))
        if not isinstance(rows, list) or len(rows) != 1:
            return None
        return Outcome({key: value for key, value in rows[0].items() if key != "mask"}, _items(places.of(step.id)))
    folder = places.run_folder(step)
    found = _json(folder / "results.json")
    if not isinstance(found, dict) or "metrics" not in found:
        return None
    return Outcome(found["metrics"], _items(folder))


def collect(step: Step, places: Places, need: Step | None = None, keep_weights: bool = False) -> bool:
    """Write the result of a step whose work is finished; False where it is not.

    keep_weights: else those that a finetuning left are removed, since only its numbers are asked for.
    """
    found = outcome(step, places)
    if found is None:
        return False
    cost = read_cost(places.attempts(step.id))
    items = None
    if found.items is not None:
        items = places.items(step.id)
        with atomic_path(items) as temporary:
            shutil.copyfile(found.items, temporary)
    mask = None if need is None or step.sparsity is None else short(places.mask(need, step.sparsity))
    result = {
        "format": FORMAT,
        "id": step.id,
        "grid": places.grid,
        "kind": "prune" if step.kind == PRUNE else "task",
        "axes": step.axes,
        **(_of_masks(step, places) if step.kind == PRUNE else {"mask": mask, "pruned_by": step.needs}),
        "metrics": found.metrics,
        "items": None if items is None else items.name,
        **_costs(cost, found),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {"threads": cost.threads, "processor": platform.machine()},
        "commit": commit(),
        "version": version(),
        "packages": packages(),
        "like": step.like,
        "defined_by": step.identity,
    }
    write_json(places.result(step.id), result)
    if not keep_weights:
        clean(step, places)
    return True


def read_result(path: Path) -> dict[str, Any] | None:
    """A result file; None where there is none, or half of one."""
    found = _json(path)
    return found if isinstance(found, dict) and all(key in found for key in NEEDED) else None


def clean(step: Step, places: Places) -> None:
    """Remove the weights that a finished finetuning left."""
    if step.kind not in (PRUNE, ZERO_SHOT):
        for pattern in ("*.safetensors", "*.pt", "*.pth", "*.ckpt"):
            for file in places.run_folder(step).glob(pattern):
                try:
                    file.unlink()
                except OSError as error:
                    raise explain_os_error(error, f"remove {file}") from error


def _costs(cost: Cost, found: Outcome) -> dict[str, Any]:
    return {
        "seconds": cost.seconds,
        "cpu_seconds": cost.cpu_seconds,
        "attempts": cost.attempts,
        "uninterrupted": cost.uninterrupted,
        "ended_well": cost.ended_well,
        "peak_memory_gb": found.peak_memory_gb if found.peak_memory_gb is not None else cost.peak_memory_gb,
    }


def _of_masks(step: Step, places: Places) -> dict[str, Any]:
    masks = {percent(sparsity / 100): places.mask(step, sparsity) for sparsity in step.sparsities}
    layers = {label: count_layers(path) for label, path in masks.items()}
    whole = weights_in_matrices(next(iter(masks.values())))
    return {"sparsities": list(step.sparsities), "layers": layers, "weights_in_matrices": whole}


def _pruned(step: Step, places: Places) -> Outcome | None:
    if places.missing_masks(step):
        return None
    table = places.mask(step, step.sparsities[0]).with_name("runtimes.csv")
    if not table.is_file():
        return None
    with table.open(newline="", encoding="utf-8") as file:
        rows = {row["sparsity"]: row for row in csv.DictReader(file)}
    wanted = [percent(sparsity / 100) for sparsity in step.sparsities]
    if any(name not in rows for name in wanted):
        return None
    numbers = ("seconds", "calibration_seconds", "masks_in_this_run", "peak_memory_gb")
    metrics = {name: {key: float(rows[name][key]) for key in numbers} for name in wanted}
    return Outcome(metrics, peak_memory_gb=max(row["peak_memory_gb"] for row in metrics.values()))


def _items(folder: Path) -> Path | None:
    path = folder / "items.json"
    return path if path.is_file() else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
