"""Cuts against a plain sort: exact counts, ties by position, every branch of the search."""

import numpy as np
import pytest

from sparsity import select
from sparsity.scores import Scores
from sparsity.select import EVERYTHING, NOTHING, cut_layer, cut_layers, split_ties


def reference_keep(parts, count):
    """Stable sort by (score, position); the first `count` go."""
    flat = np.concatenate([part.ravel() for part in parts])
    kept = np.ones(flat.size, dtype=bool)
    kept[np.argsort(flat, kind="stable")[:count]] = False
    return np.split(kept, np.cumsum([part.size for part in parts])[:-1])


def scores_of(kind, rng, shapes):
    make = {
        "normal": lambda shape: rng.standard_normal(shape),
        "absolute": lambda shape: np.abs(rng.standard_normal(shape)),
        "ties": lambda shape: rng.integers(0, 4, shape),
        "zeros": lambda shape: rng.standard_normal(shape) * (rng.random(shape) < 0.1),
        "constant": lambda shape: np.full(shape, 0.25),
        "heavy tail": lambda shape: rng.standard_normal(shape) ** 9,
    }[kind]
    return [make(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("kind", ["normal", "absolute", "ties", "zeros", "constant", "heavy tail"])
@pytest.mark.parametrize("small", [True, False])
def test_cuts_equal_a_stable_sort(kind, small, monkeypatch):
    if not small:  # force the search with sample, bracket and chunks on small arrays
        monkeypatch.setattr(select, "SMALL", 16)
        monkeypatch.setattr(select, "CHUNK", 777)
    rng = np.random.default_rng(0)
    parts = scores_of(kind, rng, [(30, 40), (7, 50), (90, 30)])
    total = sum(part.size for part in parts)
    counts = [0, 1, 2, total // 3, round(0.63 * total), round(0.9 * total), total - 1, total]
    scores = Scores.of(dict(zip("abc", parts, strict=True)))
    for count, cut in zip(counts, cut_layers(scores, counts), strict=True):
        cuts = split_ties(scores, cut).values()
        for part, part_cut, kept in zip(parts, cuts, reference_keep(parts, count), strict=True):
            np.testing.assert_array_equal(part_cut.keep(part).ravel(), kept, err_msg=f"{kind} {count}")


def test_one_array_equals_a_stable_sort():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 9, (13, 17)).astype(np.float32)
    counts = range(scores.size + 1)
    for count, cut in zip(counts, cut_layer(scores, counts), strict=True):
        np.testing.assert_array_equal(cut.keep(scores).ravel(), reference_keep([scores], count)[0])


def test_eight_weights_four_zeros():
    """The published rule prunes half when a quarter is asked for."""
    scores = np.array([0, 3, 0, 1, 0, 5, 0, 2], dtype=np.float32)
    kept = cut_layer(scores, [2])[0].keep(scores)
    assert kept.tolist() == [False, True, False, True, True, True, True, True]


def test_nothing_and_everything():
    scores = np.arange(6, dtype=np.float32)
    assert NOTHING.keep(scores).all()
    assert not EVERYTHING.keep(scores).any()


def test_search_takes_no_second_copy(monkeypatch):
    """The largest array that the search partitions is a sliver of the scores."""
    rng = np.random.default_rng(2)
    parts = [np.abs(rng.standard_normal((1000, 1000))).astype(np.float32) for _ in range(6)]
    largest = []
    partition = np.partition
    monkeypatch.setattr(np, "partition", lambda a, k: largest.append(a.size) or partition(a, k))
    scores = Scores.of({str(i): part for i, part in enumerate(parts)})
    cut_layers(scores, [round(s * 6_000_000) for s in (0.63, 0.75, 0.9)])
    assert max(largest) < 0.05 * 6_000_000
