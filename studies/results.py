"""Results of runs, made from the files that a finished run wrote; a grid's results are one packed file.

results/<grid>.jsonl.xz has a JSON object a line: {"grid": name, "yaml": the text of its file}, then the result of each
run in the order of ids. A run with scores of single test items (evaluation/items.py) has a second line,
{"items_of": its id, ...}. A runner writes each result to a file of its own (places.py), and packs them when it starts
and ends. A result can be made again from a run's files, whoever started the run: this grid, another one, a shell script
or a cluster.
"""

from __future__ import annotations

import csv
import datetime
import functools
import heapq
import itertools
import json
import lzma
import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from console.errors import explain_os_error
from sparsity.percents import percent
from storage.atomic import atomic_path, write_text
from storage.lock import locked
from studies.attempts import read_cost
from studies.grid import PACKED, ZERO_SHOT, damaged
from studies.places import Places, short
from studies.plan import PRUNE, Plan, Step
from studies.rows import SHRINK
from studies.version import commit, packages, version

FORMAT = 2

ITEMS = '{"items_of":'
"""Start of the line with a run's items."""

NEEDED = {"format", "id", "version", "finished"}
"""Without these keys, a line is no result."""

Layers = dict[str, dict[str, list[int]]]
"""Modality -> layer -> [kept, size], in the order of the model."""


@dataclass(frozen=True)
class Axes:
    """A result's position in its grid. pruner: the row; method: its pruner. sparsity: percent, 0 for dense."""

    model: str
    pruner: str
    method: str
    allocation: str | None
    sparsity: float | None
    task: str
    seed: int
    chance: bool
    options: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """The result of a run. mask, pruned_by, kept: of a task; sparsities, layers, weights_in_matrices: of a pruning.

    kept: modality -> [nonzero weights of the task model after training, its prunable weights].
    seconds, cpu_seconds (of all cores), peak_memory_gb: None if not measured. layers: percent -> `Layers`.
    like: equal for runs of about equal duration. defined_by: what the id is the hash of.
    """

    format: int
    id: str
    grid: str
    kind: str
    axes: Axes
    metrics: dict[str, Any]
    seconds: float | None
    cpu_seconds: float | None
    attempts: int
    uninterrupted: bool
    peak_memory_gb: float | None
    finished: str
    machine: dict[str, Any]
    commit: str | None
    version: dict[str, str]
    packages: dict[str, str]
    like: str
    defined_by: dict[str, Any]
    mask: str | None = None
    pruned_by: str | None = None
    kept: dict[str, list[int]] = field(default_factory=dict)
    sparsities: list[float] = field(default_factory=list)
    layers: dict[str, dict[str, dict[str, list[int]]]] = field(default_factory=dict)
    weights_in_matrices: int | None = None
    ended_well: bool = False


@dataclass(frozen=True)
class Record:
    """A result as it is written, and the line of its items; empty if there are none."""

    result: dict[str, Any]
    items: str = ""

    @property
    def text(self) -> str:
        """Its lines."""
        return as_line(self.result) + self.items


# -- files ----------------------------------------------------------------------------------------------


def as_line(value: dict[str, Any]) -> str:
    """JSON on one line, the same for the same value."""
    return json.dumps(value, separators=(",", ":")) + "\n"


def read_records(path: Path) -> Iterator[Record]:
    """The results in a packed or a single file; InputError where it is damaged."""
    try:
        with lzma.open(path, "rt", encoding="utf-8") if path.name.endswith(PACKED) else path.open() as file:
            last: Record | None = None
            for line in file:
                if line.startswith(ITEMS) and last is not None:
                    last = replace(last, items=line)
                    continue
                if last is not None:
                    yield last
                found = json.loads(line)
                if not ("yaml" in found or found.keys() >= NEEDED):
                    raise ValueError("neither the head of a file nor a result")
                last = None if "yaml" in found else Record(found)
            if last is not None:
                yield last
    except (OSError, EOFError, lzma.LZMAError, ValueError, TypeError, AttributeError) as error:
        raise damaged(path) from error


def all_records(places: Places) -> Iterator[Record]:
    """All results of a grid in the order of ids, packed or not; of two results of a run see `later`."""
    packed = read_records(places.pack) if places.pack.is_file() else iter(())
    single = (record for path in sorted(places.loose.glob("*.jsonl")) for record in read_records(path))
    merged = heapq.merge(packed, single, key=lambda record: record.result["id"])
    for _, same in itertools.groupby(merged, key=lambda record: record.result["id"]):
        yield functools.reduce(later, same)


def later(one: Record, other: Record) -> Record:
    """The later one of two results of a run; a pruning keeps what the earlier one has of other sparsities, too."""
    first, last = sorted((one, other), key=lambda record: record.result["finished"])
    if last.result["kind"] != PRUNE or first.result["version"] != last.result["version"]:
        return last
    both = {key: {**first.result.get(key, {}), **last.result.get(key, {})} for key in ("metrics", "layers")}
    sparsities = sorted({*first.result.get("sparsities", ()), *last.result.get("sparsities", ())})
    return Record(last.result | both | {"sparsities": sparsities}, last.items)


def pack(places: Places, grid_text: str) -> None:
    """Write all results of a grid to its packed file, atomically; the same results give the same bytes.

    Single files are not removed: another runner that packs at the same time may not have read them.
    """
    with (
        locked(places.loose / "lock", f"pack {places.pack}"),
        atomic_path(places.pack) as temporary,
        # Preset 1 is ten times as fast as the usual one, for files that are a fifth larger.
        lzma.open(temporary, "wt", preset=1, encoding="utf-8", newline="\n") as file,
    ):
        file.write(as_line({"grid": places.grid, "yaml": grid_text}))
        for record in all_records(places):
            file.write(record.text)


def has_result(step: Step, places: Places) -> bool:
    """Whether a step has a result of the current version, with all of its sparsities."""
    single = places.result(step.id)
    found = [record.result for record in read_records(single)] if single.is_file() else []
    found += filter(None, [in_short(places.pack).get(step.id)])
    wanted = set(step.sparsities)
    return any(result["version"] == version() and wanted <= set(result.get("sparsities") or ()) for result in found)


def in_short(path: Path) -> dict[str, dict[str, Any]]:
    """id -> the keys of a result that a runner reads, from a packed file; empty without a file. Cached."""
    try:
        stat = path.stat()
    except OSError:
        return {}
    return _in_short(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _in_short(path: Path, *_: int) -> dict[str, dict[str, Any]]:
    keys = ("version", "sparsities", "like", "seconds", "uninterrupted")
    return {record.result["id"]: {key: record.result.get(key) for key in keys} for record in read_records(path)}


# -- from the work of a run -----------------------------------------------------------------------------


def outcome(step: Step, places: Places) -> dict[str, Any] | None:
    """The metrics of a finished step; None before it is finished, which is certain since scripts write atomically."""
    if step.kind == PRUNE:
        return _pruned(step, places)
    if step.kind == SHRINK:
        return _shrunk(step, places)
    if step.kind == ZERO_SHOT:
        rows = _json(places.output(step))
        if not isinstance(rows, list) or len(rows) != 1:
            return None
        return {key: value for key, value in rows[0].items() if key != "mask"}
    found = _json(places.run_folder(step) / "results.json")
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
    items = None if step.makes else _json(places.items(step))
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
    found = None if step.kind == ZERO_SHOT else _json(places.run_folder(step) / "results.json")
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
    return _json(places.series(step) / "series.json") or {"seconds": {}, "shares": {}}


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


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
