"""Agreement of draws: votes by hand, chance by the binomial law, and masks that are no draws of one pruning."""

import pytest
import torch
from scipy.stats import binom

from console.errors import InputError
from inspection.stability import stability, votes_on_layer
from sparsity.mask import Mask
from tests.inspection.masks import files_of, mask_of

OMP = {
    "model": "m", "weights": {"file": "a", "sha256": "1"}, "pruner": "omp", "allocation": "global", "options": {},
    "num_batches": 2, "sparsity_asked": 0.5,
}  # fmt: skip


def test_votes_by_hand():
    modalities = {"x": "vision", "y": "text"}
    rows = ([1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 0, 0], [1, 0, 1, 1, 0, 0])
    found = stability(files_of(*(mask_of(modalities, OMP, x=[row], y=[[1, 0]]) for row in rows)))
    votes = found.votes["vision"]
    assert votes.counts.tolist() == [2, 0, 3, 1]
    assert votes.expected.tolist() == pytest.approx([6 / 8, 18 / 8, 18 / 8, 6 / 8])
    assert (votes.by_all, votes.by_some, votes.by_none) == pytest.approx((1 / 6, 3 / 6, 2 / 6))
    assert votes.core == pytest.approx(1 / 4)
    assert votes.core_by_chance == pytest.approx(1 / 7)
    assert found.votes["text"].core == 1
    assert found.overall.counts.tolist() == [3, 0, 3, 2]
    assert found.comparison.iou(["x.weight"]).mean == pytest.approx(2 / 4)
    assert not found.all_same


def test_votes_of_random_masks_are_binomial():
    generator = torch.Generator().manual_seed(1)
    masks = []
    for _ in range(5):
        kept = torch.zeros(200 * 100).bool()
        kept[torch.randperm(20000, generator=generator)[:5000]] = True
        masks.append(Mask({"w": kept.view(200, 100)}))
    votes = votes_on_layer(masks, "w")
    assert votes.expected == pytest.approx(20000 * binom.pmf(range(6), 5, 0.25))
    assert votes.counts == pytest.approx(votes.expected, abs=4 * 20000**0.5 / 2)


def test_the_same_mask_from_every_draw():
    found = stability(files_of(*(mask_of(None, OMP, x=[[1, 0]]) for _ in range(3))))
    assert found.all_same
    assert found.comparison.iou().mean == 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": "n"}, r"a\.safetensors and b\.safetensors are masks of different models \(m and n\)"),
        ({"pruner": "rand"}, "different pruners"),
        ({"options": {"epochs": 3}}, "different options"),
        ({"left_out": ["reached"]}, "different scores"),
        ({"num_batches": 3}, "different numbers of batches"),
        ({"weights": {"file": "a", "sha256": "2"}}, "different weights"),
        ({"repair": "dsnot"}, r"different repairs \(none and dsnot\)"),
        ({"ids": "1f", "id_power": 1.0}, "different intrinsic dimensions"),
        ({"sparsity_asked": 0.75}, r"different sparsities \(50 % and 75 %\)"),
    ],
)
def test_masks_that_differ_in_more_than_the_draw(other, message):
    files = files_of(mask_of(None, OMP, x=[[1, 0]]), mask_of(None, OMP | other, x=[[0, 1]]))
    with pytest.raises(InputError, match=message) as caught:
        stability(files)
    assert "\n" not in str(caught.value)


def test_the_same_weights_may_lie_elsewhere():
    one, other = (OMP | {"weights": {"file": name, "sha256": "1"}} for name in "ab")
    stability(files_of(mask_of(None, one, x=[[1, 0]]), mask_of(None, other, x=[[0, 1]])))


def test_sparsities_are_counted_if_not_recorded():
    with pytest.raises(InputError, match=r"different sparsities \(50\.00 % and 25\.00 %\)"):
        stability(files_of(mask_of(x=[[1, 0, 1, 0]]), mask_of(x=[[1, 0, 1, 1]])))


def test_too_few_and_twice():
    mask = mask_of(x=[[1, 0]])
    with pytest.raises(InputError, match="at least two masks, not 1"):
        stability(files_of(mask))
    with pytest.raises(InputError, match=r"a\.safetensors is given twice"):
        stability(files_of(mask, mask, names="aa"))
