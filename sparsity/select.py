"""Find the threshold below which exactly a given number of scores lie, without sorting or copying them.

Weights are pruned in the order (score, position): ties are broken by position, in the order of layers and then of
flattened elements. A `Cut` is a place in that order. Scores are float32 arrays on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsity.scores import Scores
from sparsity.threads import in_threads

SMALL = 1 << 16  # scores that are partitioned at once rather than searched
Spread = Callable[[Callable[[str], Any], Iterable[str]], Iterable[Any]]
"""`map` or `in_threads`."""

CHUNK = 1 << 18  # scores compared at a time, so that a chunk stays in cache for all comparisons


@dataclass(frozen=True)
class Cut:
    """Prune every score below `value`, and the first `ties` of those equal to it."""

    value: float
    ties: int

    def keep(self, scores: np.ndarray) -> np.ndarray:
        """scores (any shape, float32) -> boolean array of that shape, True where the weight stays."""
        kept = scores >= np.float32(self.value)
        if self.ties:
            equal = np.flatnonzero(scores.reshape(-1) == np.float32(self.value))
            kept.reshape(-1)[equal[: self.ties]] = False
        return kept

    def below(self, scores: np.ndarray) -> int:
        """How many of `scores` are pruned."""
        return int(np.count_nonzero(scores < np.float32(self.value))) + self.ties


NOTHING = Cut(float("-inf"), 0)
EVERYTHING = Cut(float("inf"), 0)


def cut_layer(scores: np.ndarray, counts: Sequence[int]) -> list[Cut]:
    """A cut for each of `counts` within one layer, in this thread: callers distribute layers over threads."""
    return cut_layers(Scores.of({"layer": scores}), counts, spread=map)


def _cut_at(ordered: np.ndarray, count: int) -> Cut:
    """The cut after `count` scores of an array partitioned there: those smaller all lie before it."""
    value = ordered[count - 1]
    return Cut(float(value), count - int(np.count_nonzero(ordered[:count] < value)))


def cut_layers(scores: Scores, counts: Sequence[int], spread: Spread = in_threads) -> list[Cut]:
    """A cut for each of `counts` over all layers together, as if they were one long array.

    The cut's ties are counted over all layers; `split_ties` assigns them to layers. A sample of the scores gives a
    narrow bracket around each cut; one pass counts the scores below it and collects those inside.
    """
    total = scores.total()
    searches = {count: _Search(count, total) for count in counts if 0 < count < total}
    while any(search.cut is None for search in searches.values()):
        _narrow(scores, [search for search in searches.values() if search.cut is None], spread)
    return [
        NOTHING if count <= 0 else EVERYTHING if count >= total else searches[count].cut  # type: ignore[misc]
        for count in counts
    ]


def split_ties(scores: Scores, cut: Cut) -> dict[str, Cut]:
    """The cut of each layer alone: equal scores go to the earlier layers first."""
    left, cuts = cut.ties, {}
    for name in scores:
        equal = int(np.count_nonzero(scores[name] == np.float32(cut.value))) if left else 0
        cuts[name] = Cut(cut.value, min(left, equal))
        left -= cuts[name].ties
    return cuts


class _Search:
    """The cut at `count` lies strictly between `low` and `high`; `below` scores are <= low."""

    def __init__(self, count: int, total: int):
        self.count = count
        self.low, self.high = np.float32(-np.inf), np.float32(np.inf)
        self.below = 0
        self.inside = total
        self.cut: Cut | None = None

    def probe(self, sample: np.ndarray) -> tuple[np.float32, np.float32]:
        """Two values likely to enclose the cut, from a sorted sample of scores inside the bracket."""
        if self.inside <= SMALL or sample.size == 0:
            return self.low, self.high
        rank = (self.count - self.below) / self.inside * sample.size
        slack = 3 * sample.size**0.5  # six standard deviations of the rank at the median
        first, last = int(rank - slack), int(rank + slack)
        low = sample[first] if first >= 0 else self.low
        high = sample[last] if last < sample.size else self.high
        return low, high


def _narrow(scores: Scores, searches: list[_Search], spread: Spread) -> None:
    """One pass over all scores that narrows every open search, and nearly always ends it."""
    wanted = 4 * round(scores.total() ** (2 / 3))  # balances sorting the sample against gathering in the bracket
    step = max(1, scores.total() // wanted) | 1  # odd, so that samples fall on all columns
    sample = np.sort(np.concatenate(list(spread(lambda name: scores[name].reshape(-1)[::step].copy(), scores))))
    brackets = []
    for search in searches:
        first = np.searchsorted(sample, search.low, side="right")
        last = np.searchsorted(sample, search.high, side="left")
        brackets.append(search.probe(sample[first:last]))
    compared = list(spread(lambda name: _compare(scores[name], brackets), scores))
    for i, search in enumerate(searches):
        low, high = brackets[i]
        at_most_low = sum(int(layer[i][0]) for layer in compared)
        less_than_high = sum(int(layer[i][1]) for layer in compared)
        if at_most_low < search.count <= less_than_high:
            count = search.count - at_most_low
            inside = np.concatenate([part for layer in compared for part in layer[i][2]])
            search.cut = _cut_at(np.partition(inside, count - 1), count)
        else:
            _tighten(search, scores, low if search.count <= at_most_low else high)


def _compare(
    scores: np.ndarray, brackets: Sequence[tuple[np.float32, np.float32]]
) -> list[tuple[int, int, list[np.ndarray]]]:
    """For each bracket (low, high): how many scores are <= low, how many < high, and those strictly between."""
    found = [[0, 0, []] for _ in brackets]
    flat = scores.reshape(-1)
    for start in range(0, flat.size, CHUNK):
        chunk = flat[start : start + CHUNK]
        for (low, high), result in zip(brackets, found, strict=True):
            above, under = chunk > low, chunk < high
            result[0] += chunk.size - np.count_nonzero(above)
            result[1] += np.count_nonzero(under)
            above &= under
            result[2].append(chunk[above])
    return [tuple(result) for result in found]  # type: ignore[misc]


def _tighten(search: _Search, scores: Scores, value: np.float32) -> None:
    """The cut lies at or beyond `value`: if at it, count the ties; else make it a bound of the bracket."""
    less = sum(int(np.count_nonzero(scores[name] < value)) for name in scores)
    equal = sum(int(np.count_nonzero(scores[name] == value)) for name in scores)
    if less < search.count <= less + equal:
        search.cut = Cut(float(value), search.count - less)
    elif search.count <= less:
        search.inside = less - search.below
        search.high = value
    else:
        search.inside -= less + equal - search.below
        search.below, search.low = less + equal, value
