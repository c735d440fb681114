"""The metrics that the scripts write: their names in tables, and which of a task's stands for it.

All of them are better when higher, and in percent (CIDEr: times 100). What is known of a task stands at its class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from console.errors import InputError, nearest
from studies.grid import KINDS, facts


def flat(metrics: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """The numbers among metrics; those within others are named after both: {"itc": {"r_mean": 5}} -> "itc r_mean"."""
    return {name: float(value) for name, value in _numbers(metrics, before) if math.isfinite(value)}


def without_number(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics that came to nothing: NaN or infinite, as those of a run whose loss diverged."""
    return [name for name, value in _numbers(metrics) if not math.isfinite(value)]


def _numbers(metrics: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, float]]:
    for key, value in metrics.items():
        name = f"{before} {key}".strip()
        if isinstance(value, Mapping):
            yield from _numbers(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def main_metric(task: str, metrics: Collection[str]) -> str:
    """The metric that stands for a task, of those that there are."""
    patterns = facts(task).main if is_known(task) else ()
    fitting = (name for pattern in patterns for name in metrics if re.fullmatch(pattern, name))
    return next(fitting, next(iter(metrics)))


def metric_words(task: str, metric: str) -> str:
    """`itc txt_r1` -> `text R@1 (itc)`; `by_kind color` -> `color`; what a task has no words for, as it is written."""
    first, space, rest = metric.partition(" ")
    if space and first in ("itc", "itm"):
        return f"{metric_words(task, rest)} ({first})"
    if space and first == "by_kind":
        return rest
    return facts(task).metric_words.get(metric, metric) if is_known(task) else metric


def task_words(task: str) -> str:
    """`zero_shot` -> `zero-shot`; a data set stays behind its colon."""
    name, _, dataset = task.partition(":")
    words = facts(task).words if is_known(task) else name
    return words + (f" ({dataset})" if dataset else "")


def tasks_ordered(tasks: Iterable[str]) -> list[str]:
    """Tasks as the reader expects them; data sets of one task next to each other."""
    ranks = {name: number for number, name in enumerate(KINDS)}
    return sorted(tasks, key=lambda task: (ranks.get(task.partition(":")[0], len(ranks)), task))


def is_known(task: str) -> bool:
    """Whether the toolkit has the task; results may be of others."""
    return task.partition(":")[0] in KINDS


def choose(wanted: list[str], known: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Task -> metrics, from words such as `retrieval/txt_r1`; known: task -> its metrics.

    InputError with the nearest name for a task or metric that there is not.
    """
    chosen: dict[str, list[str]] = {}
    for word in wanted:
        task, slash, metric = word.partition("/")
        if not slash:
            example = next((f"{task}/{main_metric(task, known[task])}" for task in known if known[task]), "vqa/overall")
            raise InputError(f"--metrics takes TASK/METRIC, for example {example}, not '{word}'")
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
