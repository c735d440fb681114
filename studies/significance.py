"""Significance of the difference of two methods: the paired bootstrap over test pictures.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (16.4). Both methods are evaluated on the same items. The
two-sided p value is the share of resamples whose mean difference is at least as far from the observed mean difference
as that is from zero.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from console.errors import InputError
from console.words import counted
from data.records import Id
from evaluation.bootstrap import FEWEST, paired_bootstrap
from evaluation.items import RECALLS, Groups, Items


@dataclass(frozen=True)
class Kind:
    """Items of one kind: the score and the picture of each, by id."""

    scores: dict[Id, float]
    pictures: dict[Id, Id]


def p_value(ours: Sequence[Groups | None], theirs: Sequence[Groups | None], metric: str) -> float:
    """The p value of the difference of two methods in a metric, from the items of the runs (seeds) of each.

    InputError if a run has no items, they differ between runs, or they are of too few pictures.
    """
    one, other = mean_scores(ours, metric), mean_scores(theirs, metric)
    _refuse_other_items(one, other)
    kinds = []
    for mine, yours in zip(one, other, strict=True):
        items = sorted(mine.scores)
        differences = np.array([mine.scores[item] - yours.scores[item] for item in items])
        kinds.append((differences, [mine.pictures[item] for item in items]))
    there = len({picture for _, pictures in kinds for picture in pictures})
    if there < FEWEST:
        raise InputError(f"the test items are of {counted(there, 'picture')}, and a test needs at least {FEWEST}")
    return paired_bootstrap(*kinds)


def mean_scores(runs: Sequence[Groups | None], metric: str) -> list[Kind]:
    """Scores of a metric, means over runs (seeds), for each kind of items; the metric is the mean of their means."""
    found = [scores_of(groups, metric) if groups else [] for groups in runs]
    if not all(found):
        raise InputError("the runs saved no scores of single test items for the metric")
    for other in found:
        _refuse_other_items(found[0], other)
    return [
        replace(
            kind, scores={item: sum(one[number].scores[item] for one in found) / len(found) for item in kind.scores}
        )
        for number, kind in enumerate(found[0])
    ]


def scores_of(groups: Groups, metric: str) -> list[Kind]:
    """Scores of a run, by kind; empty if no group has the metric.

    The mean recall is computed from its parts: of an item from R@1, 5 and 10; of both directions from texts and images.
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
    return Kind(dict(zip(items.ids, scores, strict=True)), dict(zip(items.ids, items.pictures, strict=True)))


def _refuse_other_items(one: Sequence[Kind], other: Sequence[Kind]) -> None:
    """InputError unless both have the same items of the same pictures."""
    if [kind.pictures for kind in one] != [kind.pictures for kind in other]:
        raise InputError("the runs were tested on different items")
