"""Allocations that rank blocks of layers, against plain loops from their papers' formulas."""

import numpy as np
import pytest

from pruners.session import Session
from sparsity.allocation import allocation_named, check_kept
from sparsity.layer_ratios import in_blocks
from sparsity.mask import Mask
from sparsity.scores import Scores

NAMES = ("tower.0.attn.qkv.weight", "tower.0.mlp.0.weight", "tower.1.attn.qkv.weight", "proj.fc.weight", "head.weight")
SHAPES = ((12, 20), (40, 20), (12, 20), (7, 11), (30, 30))


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    heavy = (1.0, 1.0, 2.5, 1.5, 0.2)  # heavier tails have more outliers
    return Scores.of(
        {
            name: (np.abs(rng.standard_normal(shape)) ** (2 * tail)).astype(np.float32)
            for name, shape, tail in zip(NAMES, SHAPES, heavy, strict=True)
        }
    )


def pruned(allocation, scores, sparsities, **measured):
    """Pruned weights of each layer at each sparsity."""
    cuts = allocation_named(allocation)(scores, scores, {}, sparsities, **measured)
    found = [{} for _ in sparsities]
    for name in scores:
        for counts, cut in zip(found, cuts(name, scores[name]), strict=True):
            kept = cut.keep(scores[name])
            counts[name] = int(kept.size - kept.sum())
            by_row = kept.sum(axis=1)
            assert by_row.max() - by_row.min() <= 1
    return found


def test_blocks_are_places_in_the_innermost_list(scores):
    assert list(in_blocks(scores).values()) == [list(NAMES[:2]), [NAMES[2]], [NAMES[3]], [NAMES[4]]]
    assert list(in_blocks(Scores({"a.layers.0.blocks.11.mlp.fc1.weight": (1, 1)}, None))) == ["a.layers.0.blocks.11"]


def test_outliers_by_loops(scores):
    blocks = [NAMES[:2], NAMES[2:3], NAMES[3:4], NAMES[4:]]
    ratios, sizes = [], []
    for names in blocks:
        values = [float(x) for name in names for x in scores[name].flatten()]
        mean = sum(values) / len(values)
        ratios.append(sum(x > 5 * mean for x in values) / len(values))
        sizes.append(len(values))
    assert len(set(ratios)) == 4
    total = sum(sizes)
    rises = [(ratio - min(ratios)) / (max(ratios) - min(ratios)) * 2 * 0.08 for ratio in ratios]
    mean = sum(rise * size for rise, size in zip(rises, sizes, strict=True)) / total
    for sparsity, counts in zip((0.5, 0.7), pruned("owl", scores, (0.5, 0.7)), strict=True):
        assert sum(counts.values()) == round(sparsity * total)
        for names, rise in zip(blocks, rises, strict=True):
            for name in names:
                share = 1 - (1 - sparsity + rise - mean)
                assert abs(counts[name] - share * scores.size(name)) <= 1


def test_importance_by_loops(scores):
    """Shares above the least one in proportion to importance; what a full layer cannot keep goes to the others."""
    ranks = dict(zip(NAMES, (1.0, 1.0, 0.5, 30.0, 1.5), strict=True))
    sizes = {name: scores.size(name) for name in NAMES}
    [counts] = pruned("das", scores, (0.5,), importance=ranks)
    assert sum(counts.values()) == round(0.5 * scores.total())
    full, left = set(), None
    while left != full:
        left = set(full)
        rest = 0.5 * scores.total() - sum(sizes[n] for n in full) - sum(0.4 * sizes[n] for n in NAMES if n not in full)
        level = rest / sum(sizes[n] * ranks[n] for n in NAMES if n not in full)
        full |= {n for n in NAMES if n not in full and 0.4 + level * ranks[n] >= 1}
    assert full == {NAMES[3]}
    for name in NAMES:
        share = 1 if name in full else 0.4 + level * ranks[name]
        assert abs(sizes[name] - counts[name] - share * sizes[name]) <= 1


@pytest.mark.parametrize("sparsity", [0.001, 0.05, 0.97, 0.999])
@pytest.mark.parametrize("ranks", [None, (0.0,) * 5, (0.0, 0.0, 1.0, 2.0, 0.1)])
def test_extreme_sparsities_are_exact(scores, sparsity, ranks):
    measured = {} if ranks is None else {"importance": dict(zip(NAMES, ranks, strict=True))}
    [counts] = pruned("das" if measured else "owl", scores, (sparsity,), **measured)
    assert sum(counts.values()) == round(sparsity * scores.total())
    assert all(0 <= counts[name] <= scores.size(name) for name in scores)


def test_equal_blocks_have_the_same_sparsity():
    same = Scores.of({f"list.{n}.fc.weight": np.arange(1, 101, dtype=np.float32).reshape(10, 10) for n in range(4)})
    assert pruned("owl", same, (0.5,)) == [dict.fromkeys(same, 50)]


def test_with_every_method_that_scores(xvlm, xvlm_batches):
    for method in ("wanda", "sparsegpt", "omp"):
        session = Session(xvlm, xvlm_batches[:1], method, allocation="owl")
        mask = session.masks((0.6,))[0.6]
        assert isinstance(mask, Mask)
        check_kept("owl", mask, 0.6)
        assert len({round(1 - mask.kept(name) / mask.size(name), 2) for name in mask}) > 2
