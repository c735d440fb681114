"""Scores of single test items of several runs, brought together metric by metric (`evaluation/items.py`)."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from console.errors import InputError
from evaluation.items import RECALLS, Groups, read_items

Kinds = list[dict[int, float]]
"""Item -> its score, of each kind of items that a metric is about: a mean of means where there are several."""


def items_of(files: list[Path], metric: str, read: Callable[[Path], Groups] = read_items) -> Kinds:
    """Scores of a metric, means over runs (seeds). InputError where the runs are not about the same items.

    read: `read_items`, or one that remembers, since a file serves all metrics of its run.
    """
    found = [scores_of(read(file), metric) for file in files]
    if not all(found):
        raise InputError("the runs left no scores of single test items for the metric")
    if any(items_in(other) != items_in(found[0]) for other in found):
        raise InputError("the runs were tested on different items")
    return [
        {item: sum(one[kind][item] for one in found) / len(found) for item in items}
        for kind, items in enumerate(items_in(found[0]))
    ]


def items_in(kinds: Kinds) -> list[set[int]]:
    """The items of each kind."""
    return [set(scores) for scores in kinds]


def scores_of(groups: Groups, metric: str) -> Kinds:
    """Scores of a run; empty where no group has the metric.

    The mean recall is put together: of an item, from those at 1, 5 and 10; of both directions, from texts and images.
    """
    for items in groups.values():
        if metric in items.scores:
            return [dict(zip(items.ids, items.scores[metric], strict=True))]
    start, _, last = metric.rpartition(" ")
    if last == "r_mean":
        texts, images = (scores_of(groups, f"{start} {label}_r_mean".strip()) for label in ("img", "txt"))
        return texts + images if texts and images else []
    if last not in ("img_r_mean", "txt_r_mean"):
        return []
    names = [f"{start} {last.removesuffix('_mean')}{k}".strip() for k in RECALLS]
    for items in groups.values():
        if all(name in items.scores for name in names):
            rows = zip(*(items.scores[name] for name in names), strict=True)
            return [dict(zip(items.ids, map(statistics.fmean, rows), strict=True))]
    return []
