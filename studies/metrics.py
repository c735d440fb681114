"""The metrics that the scripts write: their names in tables, and the main metric of each task.

All are in percent (CIDEr: times 100), and higher is better. Facts about a task are attributes of its class.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from configs.overrides import joined_keys
from console.errors import InputError, nearest
from studies.grid import KINDS, facts


def flat(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among metrics; nested names are joined: {"itc": {"r_mean": 5}} -> {"itc r_mean": 5.0}."""
    return {name: float(value) for name, value in _numbers(metrics).items() if math.isfinite(value)}


def without_number(metrics: Mapping[str, Any]) -> list[str]:
    """The metrics that are NaN or infinite, as in a run that diverged."""
    return [name for name, value in _numbers(metrics).items() if not math.isfinite(value)]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = joined_keys(metrics, " ").items()
    return {name: value for name, value in found if isinstance(value, int | float) and not isinstance(value, bool)}


def main_metric(task: str, metrics: Collection[str]) -> str:
    """The main metric of a task among these."""
    patterns = facts(task).main if is_known(task) else ()
    fitting = (name for pattern in patterns for name in metrics if re.fullmatch(pattern, name))
    return next(fitting, next(iter(metrics)))


def metric_words(task: str, metric: str) -> str:
    """`itc txt_r1` -> `text R@1 (itc)`; `by_kind color` -> `color`; metrics without words stay as they are."""
    first, space, rest = metric.partition(" ")
    if space and first in ("itc", "itm"):
        return f"{metric_words(task, rest)} ({first})"
    if space and first == "by_kind":
        return rest
    return facts(task).metric_words.get(metric, metric) if is_known(task) else metric


def task_words(task: str) -> str:
    """`zero_shot` -> `zero-shot`; a data set follows in brackets."""
    name, _, dataset = task.partition(":")
    words = facts(task).words if is_known(task) else name
    return words + (f" ({dataset})" if dataset else "")


def tasks_ordered(tasks: Iterable[str]) -> list[str]:
    """Tasks in the usual order; data sets of one task next to each other."""
    ranks = {name: number for number, name in enumerate(KINDS)}
    return sorted(tasks, key=lambda task: (ranks.get(task.partition(":")[0], len(ranks)), task))


def is_known(task: str) -> bool:
    """Whether the task is one of the toolkit's; other tools have their own."""
    return task.partition(":")[0] in KINDS


def choose(wanted: list[str], known: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Task -> metrics, from words such as `retrieval/txt_r1`; known: task -> its metrics.

    InputError with the nearest name for an unknown task or metric.
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
    """InputError with the nearest name for an unknown metric of a task."""
    if metric not in known:
        raise InputError(
            f"{where}: unknown metric '{metric}'{nearest(metric, known)} of {task}: it has {', '.join(known)}"
        )
