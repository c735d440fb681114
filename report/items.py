"""Scores of single test items of several runs, brought together metric by metric (`evaluation/items.py`)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from console.errors import InputError
from data.records import Id
from evaluation.items import RECALLS, Groups, Items, read_items


@dataclass(frozen=True)
class Kind:
    """Items of one kind: the score of each, and of which picture each is, both by id."""

    scores: dict[Id, float]
    pictures: dict[Id, Id]


Kinds = list[Kind]
"""The kinds of items that a metric is about: it is a mean of means where there are several."""


def items_of(files: list[Path], metric: str, read: Callable[[Path], Groups] = read_items) -> Kinds:
    """Scores of a metric, means over runs (seeds). InputError where the runs are not about the same items.

    read: `read_items`, or one that remembers, since a file serves all metrics of its run.
    """
    found = [scores_of(read(file), metric) for file in files]
    if not all(found):
        raise InputError("the runs left no scores of single test items for the metric")
    for other in found:
        refuse_other_items(found[0], other)
    return [
        replace(
            kind, scores={item: sum(one[number].scores[item] for one in found) / len(found) for item in kind.scores}
        )
        for number, kind in enumerate(found[0])
    ]


def refuse_other_items(one: Kinds, other: Kinds) -> None:
    """InputError unless both are about the same items of the same pictures."""
    if [kind.pictures for kind in one] != [kind.pictures for kind in other]:
        raise InputError("the runs were tested on different items")


def scores_of(groups: Groups, metric: str) -> Kinds:
    """Scores of a run; empty where no group has the metric. InputError where the pictures of its items are not known.

    The mean recall is put together: of an item, from those at 1, 5 and 10; of both directions, from texts and images.
    """
    for items in groups.values():
        if metric in items.scores:
            return [_kind(items, items.scores[metric])]
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
            return [_kind(items, list(map(statistics.fmean, rows)))]
    return []


def _kind(items: Items, scores: Sequence[float]) -> Kind:
    if items.pictures is None:
        raise InputError(
            "the runs are of an earlier version and do not say which picture each item is of: run them again"
        )
    return Kind(dict(zip(items.ids, scores, strict=True)), dict(zip(items.ids, items.pictures, strict=True)))
