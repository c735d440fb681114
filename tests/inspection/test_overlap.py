"""IoU, overlap and what chance would give: by hand, by torch, and by drawing random masks."""

import itertools

import numpy as np
import pytest
import torch

from console.errors import InputError
from inspection.comparison import Overlap, compare
from sparsity.mask import Mask
from tests.inspection.masks import files_of, mask_of

MODALITIES = {"x": "vision", "y": "text", "z": "text"}


def test_two_masks_by_hand():
    a = mask_of(MODALITIES, x=[[1, 1, 0, 0], [1, 0, 0, 0]], y=[[1, 1, 1]], z=[[0, 0]])
    b = mask_of(MODALITIES, x=[[1, 0, 1, 0], [1, 0, 0, 0]], y=[[0, 0, 1]], z=[[0, 0]])
    found = compare(files_of(a, b))
    x = found.overlap((0, 1), ["x.weight"])
    assert (x.size, x.a, x.b, x.both) == (8, 3, 3, 2)
    assert x.iou == pytest.approx(2 / 4)
    assert x.chance == pytest.approx((9 / 64) / (6 / 8 - 9 / 64))
    assert x.overlap == pytest.approx(2 / 3)
    assert x.agreement == pytest.approx(6 / 8)
    y = found.overlap((0, 1), ["y.weight"])
    assert y.iou == pytest.approx(1 / 3) == y.chance, "beside a full layer, a random mask is as good as any"
    assert y.overlap == 1, "the sparser mask lies within the other"
    assert found.overlap((0, 1), ["z.weight"]).iou == 1, "nothing kept by either is no difference"
    whole = found.overlap((0, 1))
    assert whole.iou == pytest.approx(3 / 7)
    assert whole.chance == pytest.approx((9 / 8 + 1) / (10 - 9 / 8 - 1)), "each layer has densities of its own"
    assert found.modalities == {"vision": ["x.weight"], "text": ["y.weight", "z.weight"]}
    assert found.matrix(["x.weight"]) == [[1, pytest.approx(0.5)], [pytest.approx(9 / 39), 1]]


def test_overlap_against_torch():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (7, 13), "b": (64, 64), "c": (3, 3, 3)}
    masks = [Mask({n: torch.rand(s, generator=generator) < 0.3 for n, s in shapes.items()}) for _ in range(3)]
    found = compare(files_of(*masks))
    ious = []
    for i, j in itertools.combinations(range(3), 2):
        both = sum(int((masks[i][n] & masks[j][n]).sum()) for n in shapes)
        either = sum(int((masks[i][n] | masks[j][n]).sum()) for n in shapes)
        assert found.overlap((i, j)).iou == pytest.approx(both / either)
        ious.append(both / either)
    spread = found.iou()
    assert (spread.mean, spread.low, spread.high) == pytest.approx((np.mean(ious), min(ious), max(ious)))
    assert spread.sd == pytest.approx(np.std(ious))


def test_chance_is_what_random_masks_have():
    """1000 pairs of random masks that keep 200 and 120 of 600 weights."""
    generator = np.random.default_rng(0)
    ious = []
    for _ in range(1000):
        a, b = (np.isin(np.arange(600), generator.choice(600, kept, replace=False)) for kept in (200, 120))
        ious.append((a & b).sum() / (a | b).sum())
    p, q = 200 / 600, 120 / 600
    chance = Overlap(600, 200, 120, 0, by_chance=600 * p * q).chance
    assert chance == pytest.approx(p * q / (p + q - p * q))
    assert chance == pytest.approx(np.mean(ious), abs=4 * np.std(ious) / 1000**0.5 + 1e-3)


def test_other_layers_are_named():
    a, b = mask_of(x=[[1]], y=[[1]]), mask_of(x=[[1]], w=[[1]])
    with pytest.raises(InputError, match=r"a\.safetensors has 'y\.weight', b\.safetensors has not"):
        compare(files_of(a, b))
    with pytest.raises(InputError, match=r"b\.safetensors has 'y\.weight', a\.safetensors has not"):
        compare(files_of(mask_of(x=[[1]]), a))
    with pytest.raises(InputError, match=r"'x\.weight' is \(1, 1\) in a\.safetensors and \(1, 2\) in b\.safetensors"):
        compare(files_of(mask_of(x=[[1]]), mask_of(x=[[1, 1]])))
