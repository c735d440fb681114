"""The cluster bootstrap: the distribution of a mean over test items when the pictures are resampled.

Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (13.3, 16.4). Texts, questions or tokens of one picture are
not independent, so pictures are drawn, each with all its items (Davison and Hinkley, Bootstrap Methods and their
Application, 1997, 3.8).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 10_000

FEWEST = 5
"""Least number of pictures for a test: with one or two, most resamples equal the sample, and p is meaningless."""

LEVEL = 0.95
"""Level of confidence intervals."""

AT_ONCE = 2_000_000
"""Numbers drawn in one piece: 16 MB."""

Differences = tuple[np.ndarray, Sequence[Hashable]]
"""For one kind of items: differences of two scores [n], and the picture of each item."""


def interval(scores: np.ndarray, pictures: Sequence[Hashable], seed: int = 0) -> tuple[float, float] | None:
    """The 95 % percentile interval of the mean of scores [n]; None for fewer than FEWEST pictures."""
    table = _by_picture([(scores, pictures)])
    if len(table) < FEWEST:
        return None
    drawn = _resampled(table, RESAMPLES, np.random.default_rng(seed))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_bootstrap(*kinds: Differences, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """The p value, in (0, 1], of the mean of the kinds' means; the pictures of all kinds are drawn together.

    The same seed gives the same p value. It is at least 1 / (resamples + 1).
    """
    assert kinds and all(len(differences) for differences, _ in kinds)
    table = _by_picture(kinds)
    observed = float(_mean_of_means(table.sum(axis=0)))
    drawn = _resampled(table, resamples, np.random.default_rng(seed))
    # The tolerance covers rounding: the order of summation must not change the p value.
    extreme = int(np.count_nonzero(np.abs(drawn - observed) >= abs(observed) - 1e-12))
    return (extreme + 1) / (resamples + 1)


def _by_picture(kinds: Sequence[Differences]) -> np.ndarray:
    """[p, k, 2]: for picture p and kind k the sum of the differences, and the number of items."""
    numbers: dict[Hashable, int] = {}
    of_items = [[numbers.setdefault(picture, len(numbers)) for picture in pictures] for _, pictures in kinds]
    columns = []
    for (differences, _), numbered in zip(kinds, of_items, strict=True):
        weights = (np.asarray(differences, dtype=float), None)
        columns.append([np.bincount(numbered, weight, minlength=len(numbers)) for weight in weights])
    return np.array(columns, dtype=float).transpose(2, 0, 1)


def _mean_of_means(sums: np.ndarray) -> np.ndarray:
    """Sums over pictures of `_by_picture` [..., k, 2] -> the mean of the kinds' means [...].

    A kind without a drawn item has mean 0.
    """
    return (sums[..., 0] / np.maximum(sums[..., 1], 1)).mean(axis=-1)


def _resampled(table: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Means [resamples] over as many pictures as there are, drawn with replacement."""
    p, k, _ = table.shape
    values, counts = np.unique(table.reshape(p, 2 * k), axis=0, return_counts=True)
    # Right or wrong, averaged over seeds, takes few values. A multinomial draw of how often each occurs has the same
    # distribution, at a cost that does not grow with the number of pictures.
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
