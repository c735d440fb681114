"""Would the difference of two methods be there with other test pictures of the same kind? The paired bootstrap.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (16.4): both methods are judged on the same items, and how
often the mean of the differences, over items drawn anew with replacement, strays from the observed one by as much as
that is away from zero is the two-sided p value. Texts, questions or regions of one picture are right or wrong together,
so what is drawn is pictures, each with all its items (the cluster bootstrap: Davison and Hinkley, Bootstrap Methods and
their Application, 1997, 3.8).
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from console.errors import InputError
from console.words import counted
from data.records import Id
from evaluation.items import RECALLS, Groups, Items

RESAMPLES = 10_000

FEWEST = 5
"""Pictures that a test needs: of one or two, nearly every draw is the pictures as they are, and p says nothing."""

AT_ONCE = 2_000_000
"""Numbers drawn in one piece: 16 MB."""

Differences = tuple[np.ndarray, Sequence[Hashable]]
"""Of one kind of items: score of the one less that of the other [n], and the picture of each item."""


@dataclass(frozen=True)
class Kind:
    """Items of one kind: the score of each, and of which picture each is, both by id."""

    scores: dict[Id, float]
    pictures: dict[Id, Id]


def p_value(ours: Sequence[Groups | None], theirs: Sequence[Groups | None], metric: str) -> float:
    """Of the difference of two methods in a metric, from the items of the runs (seeds) of each.

    InputError where a run has none, or they are not about the same items, or those are of too few pictures.
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
        raise InputError(f"the test items are of {counted(there, 'picture')}, and {FEWEST} are the fewest that tell")
    return paired_bootstrap(*kinds)


def mean_scores(runs: Sequence[Groups | None], metric: str) -> list[Kind]:
    """Scores of a metric, means over runs (seeds), of each kind of items that it is about: it is a mean of means."""
    found = [scores_of(groups, metric) if groups else [] for groups in runs]
    if not all(found):
        raise InputError("the runs left no scores of single test items for the metric")
    for other in found:
        _refuse_other_items(found[0], other)
    return [
        replace(
            kind, scores={item: sum(one[number].scores[item] for one in found) / len(found) for item in kind.scores}
        )
        for number, kind in enumerate(found[0])
    ]


def scores_of(groups: Groups, metric: str) -> list[Kind]:
    """Scores of a run, by kind; empty where no group has the metric.

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
    return Kind(dict(zip(items.ids, scores, strict=True)), dict(zip(items.ids, items.pictures, strict=True)))


def _refuse_other_items(one: Sequence[Kind], other: Sequence[Kind]) -> None:
    """InputError unless both are about the same items of the same pictures."""
    if [kind.pictures for kind in one] != [kind.pictures for kind in other]:
        raise InputError("the runs were tested on different items")


def paired_bootstrap(*kinds: Differences, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """The p value, in (0, 1], of the mean of the kinds' means; the pictures of all kinds are drawn together.

    The same seed gives the same p value. It is at least 1 / (resamples + 1).
    """
    assert kinds and all(len(differences) for differences, _ in kinds)
    table = _by_picture(kinds)
    observed = float(_mean_of_means(table.sum(axis=0)))
    drawn = _resampled(table, resamples, np.random.default_rng(seed))
    # a little slack: sums in another order must not decide
    extreme = int(np.count_nonzero(np.abs(drawn - observed) >= abs(observed) - 1e-12))
    return (extreme + 1) / (resamples + 1)


def _by_picture(kinds: Sequence[Differences]) -> np.ndarray:
    """[p, k, 2]: of picture p and kind k the sum of the differences and how many items there are."""
    numbers: dict[Hashable, int] = {}
    of_items = [[numbers.setdefault(picture, len(numbers)) for picture in pictures] for _, pictures in kinds]
    columns = []
    for (differences, _), numbered in zip(kinds, of_items, strict=True):
        weights = (np.asarray(differences, dtype=float), None)
        columns.append([np.bincount(numbered, weight, minlength=len(numbers)) for weight in weights])
    return np.array(columns, dtype=float).transpose(2, 0, 1)


def _mean_of_means(sums: np.ndarray) -> np.ndarray:
    """[..., k, 2] of `_by_picture`, added up over pictures -> the mean of the kinds' means [...].

    A kind of which no item was drawn says nothing: its sum is 0 and so is its mean.
    """
    return (sums[..., 0] / np.maximum(sums[..., 1], 1)).mean(axis=-1)


def _resampled(table: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Means [resamples] over as many pictures as there are, drawn with replacement."""
    p, k, _ = table.shape
    values, counts = np.unique(table.reshape(p, 2 * k), axis=0, return_counts=True)
    # Right or wrong, averaged over seeds, takes few values: how often each is drawn is one multinomial draw, which is
    # the same distribution and does not grow with the number of pictures.
    few = 8 * len(values) <= p
    step = max(1, AT_ONCE // (len(values) if few else p))
    means = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        if few:
            sums = generator.multinomial(p, counts / p, size=rows) @ values
        else:
            sums = table.reshape(p, 2 * k)[generator.integers(0, p, size=(rows, p))].sum(axis=1)
        means.append(_mean_of_means(sums.reshape(rows, k, 2)))
    return np.concatenate(means)
