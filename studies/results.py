"""Results of runs as records of JSON; a grid's results are one packed file.

results/<grid>.jsonl.xz has a JSON object a line: {"grid": name, "yaml": the text of its file}, then the result of each
run in the order of ids. A run with scores of single test items (evaluation/items.py) has a second line,
{"items_of": its id, ...}. A runner writes each result to a file of its own (places.py), and packs them when it starts
and ends. collecting.py makes them.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import lzma
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from storage.atomic import atomic_path
from storage.lock import locked
from studies.grid import PACKED, damaged
from studies.places import Places
from studies.plan import PRUNE, Step
from studies.version import version

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
    sparsities = sorted({*first.result.get("sparsities", ()), *last.result.get("sparsities", ())})
    return Record(last.result | joined(first.result, last.result) | {"sparsities": sparsities}, last.items)


def joined(first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Metrics and layers of two results of a pruning, by sparsity; `last` counts where both have one."""
    return {key: {**first.get(key, {}), **last.get(key, {})} for key in ("metrics", "layers")}


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
