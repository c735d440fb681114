"""The metrics that the scripts write: their names in tables, and which of a task's stands for it.

All of them are better when higher, and in percent (CIDEr: times 100).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from console.errors import InputError, nearest
from evaluation.items import RECALLS

MAIN = {
    "zero_shot": ("itm r_mean", r"\d+-NN", "itc r_mean", "IoU"),
    "retrieval": ("r_mean",),
    "captioning": ("CIDEr", "Bleu_4"),
    "vqa": ("overall",),
    "image_classification": ("top1",),
}
"""Task -> patterns of the metric that stands for it, the first that fits."""

WORDS = {
    "r_mean": "mean recall",
    "txt_r_mean": "text mean recall",
    "img_r_mean": "image mean recall",
    **{f"txt_r{k}": f"text R@{k}" for k in RECALLS},
    **{f"img_r{k}": f"image R@{k}" for k in RECALLS},
    **{f"Bleu_{n}": f"BLEU-{n}" for n in (1, 2, 3, 4)},
    "ROUGE_L": "ROUGE-L",
    "overall": "accuracy",
    "top1": "top-1",
    "true": "wholly true",
    "present": "things there",
}
"""Metric -> words for it; others are shown as they are written."""

TASKS = {"zero_shot": "zero-shot", "vqa": "VQA", "image_classification": "classification"}
ORDER = ("zero_shot", "retrieval", "captioning", "vqa", "image_classification")


def flat(metrics: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """The numbers among metrics; those within others are named after both: {"itc": {"r_mean": 5}} -> "itc r_mean"."""
    found: dict[str, float] = {}
    for key, value in metrics.items():
        name = f"{before} {key}".strip()
        if isinstance(value, Mapping):
            found |= flat(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[name] = float(value)
    return found


def without_number(metrics: Mapping[str, Any], before: str = "") -> list[str]:
    """The metrics that came to nothing: NaN or infinite, as those of a run whose loss diverged."""
    found = []
    for key, value in metrics.items():
        name = f"{before} {key}".strip()
        if isinstance(value, Mapping):
            found += without_number(value, name)
        elif isinstance(value, float) and not math.isfinite(value):
            found.append(name)
    return found


def main_metric(task: str, metrics: Collection[str]) -> str:
    """The metric that stands for a task, of those that there are."""
    for pattern in MAIN.get(task.partition(":")[0], ()):
        for name in metrics:
            if re.fullmatch(pattern, name):
                return name
    return next(iter(metrics))


def metric_words(metric: str) -> str:
    """`itc txt_r1` -> `text R@1 (itc)`; `by_kind color` -> `color`."""
    first, space, rest = metric.partition(" ")
    if first in ("itc", "itm") and space:
        return f"{metric_words(rest)} ({first})"
    return WORDS.get(metric, rest if first == "by_kind" and space else metric)


def task_words(task: str) -> str:
    """`zero_shot` -> `zero-shot`; a data set stays behind its colon."""
    name, _, dataset = task.partition(":")
    return TASKS.get(name, name) + (f" ({dataset})" if dataset else "")


def choose(wanted: list[str], known: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Task -> metrics, from words such as `retrieval/txt_r1`; known: task -> its metrics.

    InputError with the nearest name for a task or metric that there is not.
    """
    chosen: dict[str, list[str]] = {}
    for word in wanted:
        task, slash, metric = word.partition("/")
        if not slash:
            raise InputError(f"--metrics takes TASK/METRIC, for example {_example(known)}, not '{word}'")
        if task not in known:
            raise InputError(
                f"--metrics: unknown task '{task}'{nearest(task, known)}: these results have {', '.join(known)}"
            )
        check_metric(task, metric, known[task], "--metrics")
        chosen.setdefault(task, []).append(metric)
    return chosen


def check_metric(task: str, metric: str, known: Collection[str], where: str) -> None:
    """InputError with the nearest name where a task has no such metric."""
    if metric not in known:
        raise InputError(
            f"{where}: unknown metric '{metric}'{nearest(metric, known)} of {task}: it has {', '.join(known)}"
        )


def _example(known: Mapping[str, Collection[str]]) -> str:
    task = next((task for task in known if known[task]), None)
    return "vqa/overall" if task is None else f"{task}/{main_metric(task, known[task])}"
