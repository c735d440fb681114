"""Results of other tools as runs for a report's tables: lmms-eval, lm-eval, VLMEvalKit, clip_benchmark.

The name of the evaluated folder identifies the model: prune.py writes MODEL_PRUNER_PERCENT_seedN; any other name is a
dense model. Of several results for the same cell, the last in the order of paths counts.
"""

from __future__ import annotations

import csv
import datetime
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from console.errors import InputError
from evaluation.items import FORMAT as ITEMS_FORMAT
from studies.plan import DENSE
from studies.results import FORMAT, Axes, Result
from studies.run import Run
from studies.version import version

NAME = re.compile(r"hf-(?P<model>.+)_(?P<pruner>[^_]+)_(?P<percent>[\d.]+)_seed(?P<seed>\d+)")
HARNESS = re.compile(r"results_(?P<of_lm>.+)\.json|(?P<of_lmms>.+)_results\.json")
KIT = re.compile(r"_(acc|score)\.csv$")
PICTURES = ("image_id", "img_id", "imageId", "question_id")
"""Fields of a sample that identify its picture."""


@dataclass(frozen=True)
class Found:
    """A tool's result of one task. metrics: in the tool's units. samples: file of the answers, if any."""

    tool: str
    made_by: str
    model: str
    task: str
    metrics: dict[str, float]
    path: Path
    samples: Path | None = None
    notes: tuple[str, ...] = ()


def runs_of_tools(folder: Path) -> tuple[list[Run], list[str]]:
    """The runs below a folder, and notes on them. InputError for damaged files."""
    latest = {(found.tool, found.model, found.task): found for found in _found(folder)}
    values: dict[tuple[str, str, str], list[float]] = {}
    for found in latest.values():
        for metric, value in found.metrics.items():
            values.setdefault((found.tool, found.task, metric), []).append(value)
    runs = []
    for found in latest.values():
        # Some metrics are shares, others points or percents: one that is in [0, 1] in all results is a share.
        shares = {m for m in found.metrics if all(0 <= v <= 1 for v in values[found.tool, found.task, m])}
        runs.append(_run(found, {m: v * (100 if m in shares else 1) for m, v in found.metrics.items()}, folder))
    return runs, sorted({note for found in latest.values() for note in found.notes})


def _found(folder: Path) -> Iterator[Found]:
    """All results below a folder, in the order of paths."""
    for path in sorted(folder.rglob("*")):
        if (name := HARNESS.fullmatch(path.name)) is not None:
            yield from _of_harness(path, name)
        elif path.suffix == ".json":
            yield from _of_clip_benchmark(path)
        elif KIT.search(path.name):
            yield from _of_kit(path)


def _of_harness(path: Path, name: re.Match[str]) -> Iterator[Found]:
    """Results of lmms-eval or lm-eval, without tasks that are part of a group, and metrics where lower is better."""
    content = _json(path)
    if not isinstance(content, dict) or not {"results", "model_name"} <= set(content):
        return
    tool, date = ("lm-eval", name["of_lm"]) if name["of_lm"] else ("lmms-eval", name["of_lmms"])
    try:
        groups, limit = content.get("group_subtasks", {}), content["config"].get("limit")
        parts = {part for group, of in groups.items() for part in of if part != group}
        version_of = str(content.get(f"{tool.replace('-', '_')}_version", ""))
        for task in [task for task in content["results"] if task not in parts]:
            metrics, lower = _metrics(content["results"][task], content.get("higher_is_better", {}).get(task, {}))
            notes = [f"{tool} {task}: {', '.join(lower)} is left out, since lower is better"] if lower else []
            if limit and limit > 0:
                notes.append(f"{tool} {task} of {Path(content['model_name']).name} is a trial of {limit:g} samples")
            samples = f"samples_{task}_{date}.jsonl" if name["of_lm"] else f"{date}_samples_{task}.jsonl"
            there = path.with_name(samples) if path.with_name(samples).is_file() else None
            if metrics:
                yield Found(tool, version_of, content["model_name"], task, metrics, path, there, tuple(notes))
    except (AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{path} is incomplete as a result of {tool}: run it again, or remove the file") from error


def _metrics(of: dict[str, Any], higher: dict[str, bool]) -> tuple[dict[str, float], list[str]]:
    """A task's metrics, named with their filter if it has one; and the names of those where lower is better."""
    metrics, lower = {}, []
    for key, value in of.items():
        metric, _, kind = key.partition(",")
        if not _is_number(value) or "_stderr" in key or metric in ("samples", "sample_len", "sample_count"):
            continue
        if higher.get(metric) is False:
            lower.append(metric)
        else:
            metrics[metric if kind in ("", "none") else f"{metric} {kind}"] = float(value)
    return metrics, lower


def _of_clip_benchmark(path: Path) -> Iterator[Found]:
    """Results of clip_benchmark: a data set per file. Its file names are free, so other JSON files are skipped."""
    try:
        content = _json(path)
    except InputError:
        return
    if not isinstance(content, dict) or not {"dataset", "model", "pretrained", "metrics"} <= set(content):
        return
    metrics = {name: float(value) for name, value in content["metrics"].items() if _is_number(value)}
    yield Found(
        "clip_benchmark", "", content["model"].removeprefix("local-dir:"), str(content["dataset"]), metrics, path
    )


def _of_kit(path: Path) -> Iterator[Found]:
    """Results of VLMEvalKit: MODEL/.../MODEL_DATASET_acc.csv, a row per split."""
    model = next((folder.name for folder in path.parents if path.name.startswith(f"{folder.name}_")), None)
    if model is None:
        return
    metrics: dict[str, float] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            if None in row:
                raise InputError(
                    f"{path} is damaged: a line has more fields than the first one; run the tool again, or remove it"
                )
            split = row.pop("split", "none")
            for name, text in row.items():
                value = _number(text)
                if name and value is not None:
                    metrics[name if split in ("none", "Overall", "") else f"{split} {name}"] = value
    if metrics:
        yield Found("vlmevalkit", "", model, KIT.sub("", path.name).removeprefix(f"{model}_"), metrics, path)


def _run(found: Found, metrics: dict[str, float], folder: Path) -> Run:
    """A tool's result as a run of a grid."""
    name = Path(found.model).name
    parts = NAME.fullmatch(name)
    model = f"hf:{parts['model'].split('--')[-1] if parts else name}"
    pruner, seed = (parts["pruner"], int(parts["seed"])) if parts else (DENSE, 0)
    sparsity = float(parts["percent"]) if parts else 0.0
    task = f"{found.tool}:{found.task}"
    run = "-".join([task, name])
    method = pruner.split("-")[0]
    finished = datetime.datetime.fromtimestamp(found.path.stat().st_mtime, datetime.UTC).isoformat(timespec="seconds")
    axes = Axes(model, pruner, method, None, sparsity, task, seed, parts is not None, {})
    made_with = {found.tool: found.made_by or "unknown"}
    result = Result(
        FORMAT, run, folder.name, "task", axes, metrics, None, None, 1, True, None, finished, {}, None, version(),
        made_with, task, {},
    )  # fmt: skip
    made = Run(run, model, pruner, method, sparsity, task, seed, parts is not None, metrics, result)
    return made if found.samples is None else replace(made, **_samples(found.samples, metrics))


def _samples(path: Path, metrics: dict[str, float]) -> dict[str, bytes]:
    """The fields `single` and `answers` of `Run`. Metrics that are not the mean of samples' scores have none."""
    text = path.read_text(encoding="utf-8", errors="replace")  # not splitlines: answers may contain other line ends
    lines = [_parsed(line, path) for line in text.split("\n") if line.strip()]
    try:
        lines = [line for line in lines if line.get("filter", "none") == lines[0].get("filter", "none")]
        ids = [line["doc_id"] for line in lines]
        answers = [_answer(line["filtered_resps"]) for line in lines]
        scores = {}
        for metric, value in metrics.items():
            found = [_score(line.get(metric.partition(" ")[0])) for line in lines]
            if None not in found and any(
                math.isclose(c * sum(found) / len(found), value, abs_tol=0.01) for c in (1, 100)
            ):
                scores[metric] = found
        group = {"ids": ids, "pictures": [_picture(line) for line in lines], "scores": scores}
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is incomplete as a file of samples: run the tool again, or remove it") from error
    items = json.dumps({"format": ITEMS_FORMAT, "groups": {"items": group}})
    given = json.dumps(dict(zip(map(str, ids), answers, strict=True)))
    return {"single": zlib.compress(items.encode(), 1), "answers": zlib.compress(given.encode(), 1)}


def _answer(given: Any) -> str:
    """A model's answer, lower-case and without a final full stop; or the number of the most likely choice.

    given: a text, a list of one, or [log-likelihood, ...] for each choice.
    """
    if isinstance(given, list) and len(given) > 1 and all(isinstance(one, list) for one in given):
        scores = [float(one[0]) for one in given]
        return str(scores.index(max(scores)))
    return str(given[0] if isinstance(given, list) and len(given) == 1 else given).strip(" .\n").casefold()


def _score(value: Any) -> float | None:
    """A sample's score, which some tasks store in a mapping."""
    value = value.get("score") if isinstance(value, dict) else value
    return float(value) if isinstance(value, bool) or _is_number(value) else None


def _picture(line: dict[str, Any]) -> Any:
    """An identifier of the sample's picture; the sample's own id if unknown."""
    if media := line.get("input_media"):
        return json.dumps(media)
    places: Sequence[Any] = [line.get("doc"), *line.values()]
    known = (of[key] for of in places if isinstance(of, dict) for key in PICTURES if isinstance(of.get(key), str | int))
    return next(known, line["doc_id"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _json(path: Path) -> Any:
    return _parsed(path.read_text(encoding="utf-8", errors="replace"), path)


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): run the tool again, or remove the file") from error
