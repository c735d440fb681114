"""Made-up results, as a grid leaves them until they are packed: FOLDER/NAME stands for FOLDER/NAME.jsonl.xz.

    python -m tests.studies.made FOLDER/NAME
makes a grid of xvlm-mini to look at its report (`--work FOLDER/work`): no number of it was measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import experiments
from sparsity.percents import percent
from studies.places import Places
from studies.reading import Results, read_results
from studies.results import Record, as_line, pack, read_records
from studies.version import packages, version


def places_of(folder: Path) -> Places:
    """Where the results of the grid `folder` lie."""
    return Places(folder.parent, folder.parent / "work", folder.name)


def read(*folders: Path, only: Sequence[str] = ()) -> Results:
    """The results of some grids that lie in one folder."""
    return read_results(list(map(str, folders)), folders[0].parent, folders[0].parent / "work", only)


def report(folder: Path, *arguments: str) -> None:
    """What `experiments.py report` does with a grid's results."""
    words = ["report", str(folder), "--work", str(folder.parent / "work"), *arguments]
    assert experiments.report(experiments.parse_args(words)) == 0


def put(
    folder: Path,
    metrics: dict[str, Any],
    pruner: str = "omp",
    sparsity: float = 75,
    task: str = "vqa",
    seed: int = 0,
    items: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write one result; `changes` replace keys of it, those of `axes` that are there. Returns its file."""
    words = [task, "m", pruner, percent(sparsity / 100), f"seed{seed}"]
    axes = {
        "model": "xvlm-mini", "pruner": pruner, "method": pruner, "allocation": None, "sparsity": sparsity,
        "task": task, "seed": seed, "chance": True, "options": {},
    }  # fmt: skip
    result = {
        "format": 2, "id": changes.pop("id", "-".join(words)), "grid": folder.name,
        "kind": "prune" if task == "prune" else "task",
        "axes": axes | {key: changes.pop(key) for key in list(changes) if key in axes}, "mask": None,
        "pruned_by": None if pruner == "dense" or task == "prune" else f"prune-m-{pruner}-{percent(0.0)}-seed{seed}",
        "metrics": metrics, "seconds": 60.0, "cpu_seconds": 100.0, "attempts": 1, "uninterrupted": True,
        "peak_memory_gb": 1.5, "finished": f"2026-11-2{seed}T10:00:00+00:00",
        "machine": {"threads": 1, "processor": "x86_64"}, "commit": "0123456789abcdef", "version": version(),
        "packages": packages(), "like": f"like {task}", "defined_by": {"kind": task, "pruner": pruner, "seed": seed},
    }  # fmt: skip
    if not places_of(folder).pack.is_file():
        pack(places_of(folder), "")
    path = places_of(folder).result(result["id"])
    line = "" if items is None else as_line({"items_of": result["id"], **items})
    path.write_text(Record(result | changes, line).text)
    return path


def change(path: Path, **changes: Any) -> None:
    """Replace keys of a result."""
    (record,) = read_records(path)
    path.write_text(Record(record.result | changes, record.items).text)


def put_pruning(folder: Path, pruner: str, seed: int, seconds: float, memory: float, **changes: Any) -> Path:
    """Write the result of a pruning at 63 and 75 %."""
    row = {"seconds": seconds, "calibration_seconds": seconds / 2, "masks_in_this_run": 2, "peak_memory_gb": memory}
    metrics = {"63": row, "75": row}
    made = {"peak_memory_gb": memory, "sparsities": [63.0, 75.0], "cpu_seconds": seconds + 4} | changes
    return put(folder, made.pop("metrics", metrics), pruner, 0, "prune", seed, **made)


# -- a whole grid ---------------------------------------------------------------------------------------

GRID = """models: [xvlm-mini]
pruners: [omp, lamp, snip, multiflow]
sparsities: [63, 75, 90, 95]
tasks: [zero_shot, retrieval, captioning, vqa]
seeds: [0, 1, 2]
dense: true
"""

STEEP = {"omp": 1.3, "lamp": 0.9, "snip": 0.75, "multiflow": 0.42}
SECONDS = {"omp": 0.04, "lamp": 0.09, "snip": 9.1, "multiflow": 7.3}
SPARSITIES = (63.0, 75.0, 90.0, 95.0)
KINDS = ("color", "count", "position", "shape")


def demo(folder: Path, sparsities: tuple[float, ...] = SPARSITIES) -> None:
    """Four pruners, four tasks, three seeds; a few runs are missing."""
    draw = np.random.default_rng(7)
    pack(places_of(folder), GRID)
    for seed in range(3):
        for task in ("retrieval", "captioning", "vqa"):
            _one(folder, draw, "dense", 0.0, task, seed)
        for pruner in STEEP:
            if seed == 0 or pruner in ("snip", "multiflow"):
                _pruned(folder, draw, pruner, seed, sparsities)
            for sparsity in sparsities:
                for task in ("zero_shot", "retrieval", "captioning", "vqa"):
                    chance = task != "zero_shot" or pruner in ("snip", "multiflow")
                    if (chance or seed == 0) and not (seed == 2 and pruner == "snip" and sparsity > 80):
                        _one(folder, draw, pruner, sparsity, task, seed, chance)
    _one(folder, draw, "dense", 0.0, "zero_shot", 0, False)


def _one(folder: Path, draw: Any, pruner: str, sparsity: float, task: str, seed: int, chance: bool = True) -> None:
    """A run whose score falls with sparsity, the steeper the worse the pruner; finetuning mends half of it."""
    left = 1.0 if pruner == "dense" else 1 / (1 + np.exp(11 * STEEP[pruner] ** 0.5 * (sparsity / 100 - 0.79)))
    left = left if task == "zero_shot" else 0.45 + 0.55 * left
    hit = np.clip(left * 0.74 + draw.normal(0, 0.008), 0.01, 0.99)
    right = (draw.random(500) < hit).astype(float)
    names: dict[str, Any]

    def near(value: float) -> float:
        return round(float(np.clip(100 * hit * value + draw.normal(0, 0.4), 0, 100)), 2)

    recalls = {f"{side}_r{k}": near(high) for side in ("txt", "img") for k, high in ((1, 0.8), (5, 1.1), (10, 1.2))}
    recalls |= {"txt_r_mean": near(1), "img_r_mean": near(0.98), "r_mean": round(100 * float(right.mean()), 2)}
    if task == "zero_shot":
        names = {f"itc {key}": near(0.8) for key in ("img_r1", "txt_r1", "r_mean")}
        names |= {"itm img_r1": near(0.9), "itm txt_r1": near(0.95), "itm r_mean": 100 * float(right.mean())}
        names |= {"IoU": near(1.1)}
        metric = "itm r_mean"
    elif task == "retrieval":
        names, metric = {**recalls, "itc": {key: value - 3 for key, value in recalls.items()}}, "r_mean"
    elif task == "captioning":
        names = {f"Bleu_{n}": near(1 - n / 8) for n in (1, 2, 3, 4)} | {"ROUGE_L": near(0.7)}
        names |= {"CIDEr": 140 * float(right.mean()), "left_out": ["METEOR needs Java"]}
        names |= {"true": near(0.9), "present": near(1)}
        metric = "CIDEr"
    else:
        names = {"overall": round(100 * float(right.mean()), 2), "by_kind": {kind: near(0.9) for kind in KINDS}}
        metric = "overall"
    items = {"format": 2, "groups": {"items": {"ids": list(range(500)), "scores": {metric: right.tolist()}}}}
    put(folder, names, pruner, sparsity, task, seed, items, chance=chance)


def _pruned(folder: Path, draw: Any, pruner: str, seed: int, sparsities: tuple[float, ...]) -> None:
    seconds = SECONDS[pruner] * float(1 + draw.normal(0, 0.05))
    row = {"seconds": seconds, "calibration_seconds": 0.9 * seconds, "masks_in_this_run": 4}
    memory = {"omp": 0.71, "lamp": 0.79, "snip": 1.66, "multiflow": 0.92}[pruner] + float(draw.normal(0, 0.01))
    layers = {percent(s / 100): _layers(draw, pruner, s) for s in sparsities}
    metrics = {name: row | {"peak_memory_gb": memory} for name in layers}
    put_pruning(folder, pruner, seed, seconds, memory, metrics=metrics, sparsities=list(sparsities), layers=layers)


def _layers(draw: Any, pruner: str, sparsity: float) -> dict[str, dict[str, list[int]]]:
    found: dict[str, dict[str, list[int]]] = {}
    for modality, count, shift in (("vision", 20, -0.05), ("text", 16, 0.08), ("fusion", 20, 0.0)):
        shift = 0 if pruner == "multiflow" else shift
        sizes = [16_384 * (1 + i % 2) for i in range(count)]
        wave = 0.09 * np.sin(np.arange(count) * 1.7) + draw.normal(0, 0.02, count)
        gone = np.clip(sparsity / 100 + shift + wave, 0, 1)
        kept = [round(size * (1 - share)) for size, share in zip(sizes, gone.tolist(), strict=True)]
        found[modality] = {f"{modality}.{i}.weight": list(pair) for i, pair in enumerate(zip(kept, sizes, strict=True))}
    return found


if __name__ == "__main__":
    demo(Path(sys.argv[1]))
