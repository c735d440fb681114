"""The paired bootstrap: would the difference of two methods be there with other test items of the same kind?

Efron and Tibshirani, An Introduction to the Bootstrap, 1993 (16.4): items are drawn with replacement, both methods
judged on the same ones; how often the mean of the differences then strays from the observed one by as much as that is
away from zero is the two-sided p value.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 10_000
AT_ONCE = 2_000_000
"""Numbers drawn in one piece: 16 MB."""


def paired_bootstrap(*kinds: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """kinds: [n] each, score of the one less that of the other, item by item -> p value in (0, 1].

    What is tested is the mean of the kinds' means; items of a kind are drawn among themselves. The same seed gives the
    same p value. It is at least 1 / (resamples + 1).
    """
    assert kinds and all(len(differences) for differences in kinds)
    generator = np.random.default_rng(seed)
    drawn = np.mean([_means(differences, resamples, generator) for differences in kinds], axis=0)
    observed = float(np.mean([differences.mean() for differences in kinds]))
    # a little slack: sums in another order must not decide
    extreme = int(np.count_nonzero(np.abs(drawn - observed) >= abs(observed) - 1e-12))
    return (extreme + 1) / (resamples + 1)


def _means(differences: np.ndarray, resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Means [resamples] of as many items as there are, drawn with replacement."""
    (n,) = differences.shape
    values, counts = np.unique(differences, return_counts=True)
    # Right or wrong, averaged over seeds, takes few values: how often each is drawn is one multinomial draw, which is
    # the same distribution and does not grow with the number of items.
    few = 8 * len(values) <= n
    step = max(1, AT_ONCE // (len(values) if few else n))
    means = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        if few:
            means.append(generator.multinomial(n, counts / n, size=rows) @ values / n)
        else:
            means.append(differences[generator.integers(0, n, size=(rows, n))].mean(axis=1))
    return np.concatenate(means)
