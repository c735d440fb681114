"""Distances between output tokens, against plain loops over pairs."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calibration.diversity import Diversity
from calibration.processes import Group
from models.layers import AttentionWeight
from models.wrap import wrap
from pruners.session import Session
from sparsity.allocation import check_kept


class Mixed(nn.Module):
    """A layer that reads one kind of token, and one that reads both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tower, self.language = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x, y):
        self.language(torch.cat([self.tower(x), y], dim=1))


def tokens(name, batch):
    return batch["atts"] if name == "language.weight" else None


def images(name, batch):
    return batch["image"] if name == "language.weight" else None


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(1)
    atts = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3])
    image = torch.tensor([[1] * 3 + [0] * 3] * 3)
    batches = [
        {"x": torch.randn(3, 3, 6), "y": torch.randn(3, 3, 8) * atts[:, 3:, None], "atts": atts, "image": image}
        for _ in range(2)
    ]
    model = wrap(Mixed(), forward=lambda m, b: m(b["x"], b["y"]), tokens=tokens, images=images)
    return model, batches


def distance(pairs):
    """The mean of 1 - cosine, None without a pair."""
    found = [1 - float(F.cosine_similarity(a, b, dim=0)) for a, b in pairs]
    return sum(found) / len(found) if found else None


def mean(values):
    there = [value for value in values if value is not None]
    return sum(there) / len(there)


@torch.no_grad()
def by_loops(model, batches):
    tower, both = [], [[], [], []]
    for batch in batches:
        for x, y, atts in zip(batch["x"], batch["y"], batch["atts"], strict=True):
            seen = model.module.tower(x)
            tower.append(distance(itertools.combinations(seen, 2)))
            out = model.module.language(torch.cat([seen, y]))
            text, image = [t for t, real in zip(out[3:], atts[3:], strict=True) if real], list(out[:3])
            both[0].append(distance(itertools.combinations(text, 2)))
            both[1].append(distance(itertools.combinations(image, 2)))
            both[2].append(distance(itertools.product(text, image)))
    return {"tower.weight": mean(tower), "language.weight": mean([mean(term) for term in both])}


def test_distances_by_loops_over_pairs(mixed):
    model, batches = mixed
    made = Diversity(model, model.prunable_layers())
    for batch in batches:
        made.update(batch)
        made.merge(Group(), [0])
    found, expected = made.importance(), by_loops(model, batches)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("method", ["wanda", "omp"])
def test_the_more_different_layer_keeps_more(mixed, method):
    model, batches = mixed
    session = Session(model, batches, method, allocation="das")
    mask = session.masks((0.5,))[0.5]
    check_kept("das", mask, 0.5)
    kept = {name: mask.kept(name) / mask.size(name) for name in mask}
    ranks = by_loops(model, batches)
    # 0.4 and a share of what is left, in proportion to importance
    level = 0.1 * sum(mask.size(n) for n in mask) / sum(mask.size(n) * ranks[n] for n in mask)
    for name, share in kept.items():
        assert abs(share - 0.4 - level * ranks[name]) < 1 / mask.size(name)


@torch.no_grad()
def test_matrices_of_attention_and_of_convolutions():
    """What a layer returns, from what it reads: the statistic's own products are those of torch."""
    torch.manual_seed(0)
    for kdim in (None, 6):
        attention = nn.MultiheadAttention(4, 2, kdim=kdim, batch_first=True)
        nn.init.normal_(attention.in_proj_bias)
        leaves = ("q_proj_weight", "k_proj_weight", "v_proj_weight") if kdim else ("in_proj_weight",)
        found = torch.cat([AttentionWeight(attention, leaf).bias for leaf in leaves])
        assert torch.equal(found, attention.in_proj_bias)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1))
    x = torch.randn(2, 3, 5, 5)
    model = wrap(module, forward=lambda m, b: m(b["x"]), conv=True)
    made = Diversity(model, model.prunable_layers())
    made.update({"x": x})
    made.merge(Group(), [0])
    expected = mean([distance(itertools.combinations(out.flatten(1).t(), 2)) for out in module(x)])
    assert made.importance() == {"0.weight": pytest.approx(expected, rel=1e-5)}
