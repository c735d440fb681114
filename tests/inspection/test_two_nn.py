"""Intrinsic dimensions against the published program, another library, and points whose dimension is known."""

import numpy as np
import pytest
import skdim
import torch
from safetensors.torch import load_file

from console.errors import InputError
from inspection.two_nn import dimension_of
from tests.conftest import REFERENCE

VECTORS = load_file(REFERENCE / "vectors" / "twonn" / "twonn.safetensors")
SETS = sorted({name.split(".")[0] for name in VECTORS})


def two_nn(points, *arguments, **options):
    """From points [n, d], by exact differences."""
    rows = torch.as_tensor(points, dtype=torch.float64)
    squares = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").square_()
    return dimension_of(squares.numpy(), *arguments, **options)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("fraction", "ending"), [(1.0, ""), (0.9, "_fraction09")])
def test_equals_the_published_program(name, fraction, ending):
    of = {key.partition(".")[2]: tensor for key, tensor in VECTORS.items() if key.startswith(f"{name}.")}
    permutations = of["permutations"].numpy()
    found = two_nn(of["points"], len(permutations), permutations, fraction)
    assert found.whole == pytest.approx(of[f"id_full{ending}"].item(), rel=1e-5)
    assert found.dimension == pytest.approx(of[f"id_blocks{ending}"].mean().item(), rel=1e-5)
    if not ending:
        assert found.deviation == pytest.approx(of["std_blocks"][-1].item(), rel=1e-4, abs=1e-4)
        assert found.used == len(of["x"]) + 2


@pytest.mark.parametrize("fraction", [0.9, 0.6])
def test_equals_another_library(fraction):
    points = np.random.default_rng(3).normal(size=(400, 6)) @ np.random.default_rng(4).normal(size=(6, 30))
    other = skdim.id.TwoNN(discard_fraction=1 - fraction).fit(points).dimension_
    assert two_nn(points, 1, fraction=fraction).whole == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("dimension", [2, 4])
def test_a_uniform_cube_has_its_dimension(dimension):
    points = np.zeros((2000, 9))
    points[:, :dimension] = np.random.default_rng(dimension).uniform(size=(2000, dimension))
    assert two_nn(points, 1).whole == pytest.approx(dimension, rel=0.06)


def test_a_permutation_of_blocks_by_hand():
    """Two blocks of an order are two sets of points on their own."""
    points = torch.from_numpy(np.random.default_rng(5).normal(size=(60, 3)))
    order = np.random.default_rng(6).permutation(60)
    parts = [two_nn(points[order[half]], 1).whole for half in (slice(30), slice(30, 60))]
    whole = two_nn(points, 1).whole
    found = two_nn(points, 2, [np.arange(60), order])
    assert found.dimension == pytest.approx((whole + np.mean(parts)) / 2)
    assert found.deviation == pytest.approx(np.std(parts))


def test_the_seed_draws_the_blocks():
    points = np.random.default_rng(7).normal(size=(100, 3))
    one, same, other = (two_nn(points, 5, seed=seed).dimension for seed in (1, 1, 2))
    assert one == same != other


def test_distances_are_left_as_they_were():
    squares = np.random.default_rng(8).uniform(size=(8, 8))
    before = squares.copy()
    dimension_of(squares, 1)
    assert np.array_equal(squares, before)


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (VECTORS["tiny50.points"], {}, r"50 samples cannot be cut into 20 blocks of 4 or more: give at least 80"),
        (torch.zeros(90, 3), {}, "a block has 0 points with two neighbours at different distances"),
        (torch.rand(9, 3), {"blocks": 0}, "blocks must be at least 1, not 0"),
        (torch.rand(90, 3), {"fraction": 0.2}, "fraction 0.2 uses none of a block's 4 ratios"),
        (torch.rand(90, 3), {"fraction": 1.5}, "fraction is the share of the ratios"),
    ],
)
def test_what_cannot_be_measured(points, options, message):
    with pytest.raises(InputError, match=message):
        two_nn(points, **options)
