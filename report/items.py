"""Scores of single test items of several runs, brought together metric by metric (`evaluation/items.py`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from console.errors import InputError
from evaluation.items import Groups, read_items


def items_of(files: list[Path], metric: str, read: Callable[[Path], Groups] = read_items) -> dict[int, float]:
    """Item -> its score, mean over runs (seeds). InputError where the runs are not about the same items.

    read: `read_items`, or one that remembers, since a file serves all metrics of its run.
    """
    found = [scores_of(read(file), metric) for file in files]
    if not all(found):
        raise InputError("the runs left no scores of single test items for the metric")
    if any(other.keys() != found[0].keys() for other in found):
        raise InputError("the runs were tested on different items")
    return {item: sum(one[item] for one in found) / len(found) for item in found[0]}


def scores_of(groups: Groups, metric: str) -> dict[int, float]:
    """Item -> its score; empty where no group has the metric."""
    group = next((items for items in groups.values() if metric in items.scores), None)
    return {} if group is None else dict(zip(group.ids, group.scores[metric], strict=True))
