"""Each method against plain loops written from its equation."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from models.base import Model
from pruners import prune
from pruners.lamp import lamp_scores
from pruners.multiflow import flow_scores
from pruners.session import Session
from sparsity.schedules import SCHEDULES


def test_flow_scores_by_loops():
    generator = torch.Generator().manual_seed(0)
    weight, norm = torch.randn(4, 3, generator=generator), torch.rand(3, generator=generator)
    scores = flow_scores(weight, norm)
    for o, i in itertools.product(range(4), range(3)):
        reached = sum(abs(weight[o, k]) * norm[k] for k in range(3)) / 3
        emitted = norm[i] * sum(abs(weight[k, i]) for k in range(4)) / 4
        assert scores[o, i] == pytest.approx((reached * abs(weight[o, i]) * emitted).item(), rel=1e-5)


@pytest.mark.parametrize(("reached", "emitted"), [(True, False), (False, True), (False, False)])
def test_flow_scores_without_a_part_by_loops(reached, emitted):
    generator = torch.Generator().manual_seed(1)
    weight, norm = torch.randn(4, 3, generator=generator), torch.rand(3, generator=generator)
    before = weight.clone()
    scores = flow_scores(weight, norm, reached, emitted)
    for o, i in itertools.product(range(4), range(3)):
        expected = abs(weight[o, i])
        if reached:
            expected = expected * sum(abs(weight[o, k]) * norm[k] for k in range(3)) / 3
        if emitted:
            expected = expected * norm[i] * sum(abs(weight[k, i]) for k in range(4)) / 4
        assert scores[o, i] == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(weight, before)


def test_multiflow_without_its_parts(xvlm, xvlm_batches):
    """Without both it is magnitude under the same prior; each part changes the mask; the origin tells."""

    def mask(**options):
        return prune(xvlm, xvlm_batches, "multiflow", (0.75,), **options)[0.75]

    whole, bare = mask(), mask(reached=False, emitted=False)
    magnitude = prune(xvlm, [], "omp", (0.75,), allocation="multimodal")[0.75]
    names = list(xvlm.prunable_layers())
    assert all(torch.equal(bare[name], magnitude[name]) for name in names)
    found = {(True, True): whole, (False, False): bare}
    found |= {parts: mask(reached=parts[0], emitted=parts[1]) for parts in ((True, False), (False, True))}
    for (reached, emitted), made in found.items():
        assert made.source["options"] == {"reached": reached, "emitted": emitted, "tokens": "all"}
        assert round(made.sparsity(), 4) == 0.75
    for one, two in itertools.combinations(found.values(), 2):
        assert any(not torch.equal(one[name], two[name]) for name in names)


@pytest.mark.parametrize("weights", ["random", "ties", "zeros"])
def test_lamp_scores_by_loops(weights):
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 7)).astype(np.float32)
    if weights == "ties":
        weight = np.round(weight)
    if weights == "zeros":
        weight[:] = 0
    scores = lamp_scores(weight)
    squares = weight.astype(np.float64) ** 2
    for o, i in itertools.product(range(5), range(7)):
        at_least = squares[squares >= squares[o, i]].sum()
        assert scores[o, i] == pytest.approx(squares[o, i] / at_least if squares[o, i] else 0, rel=1e-6)
    if weights == "random":
        assert scores.max() == 1


class Toy(Model):
    """Two layers, one with padded input: small enough to follow by hand."""

    modalities = {"": "text"}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def states(self, batch):
        return self.b(self.a(batch["x"]).relu())

    def losses(self, batch):
        kept = batch["text_atts"].unsqueeze(-1)
        return {"square": (self.states(batch) * kept).square().sum() / kept.sum()}

    def observe(self, batch):
        self.states(batch)

    def real_tokens(self, name, batch):
        return batch["text_atts"]


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def toy_batches():
    generator = torch.Generator().manual_seed(1)
    sizes = (2, 3, 2, 1)
    return [
        {
            "general": {
                "x": torch.randn(b, 5, 3, generator=generator),
                "text_atts": (torch.arange(5) < torch.arange(1, b + 1)[:, None] + 1).long(),
            }
        }
        for b in sizes
    ]


def test_input_norms_by_loops(toy, toy_batches):
    session = Session(toy, toy_batches, "multiflow")
    session.masks((0.5,))
    for name, of_layer in (("a.weight", lambda x: x), ("b.weight", lambda x: toy.a(x).relu())):
        total, sequences = 0.0, 0
        for batch in toy_batches:
            for x, atts in zip(batch["general"]["x"], batch["general"]["text_atts"], strict=True):
                sequences += 1
                for token, real in zip(of_layer(x), atts, strict=True):
                    total = total + token.double() ** 2 * real
        expected = (total / sequences).sqrt()
        torch.testing.assert_close(session.pruner.norms.norms(name).double(), expected, rtol=1e-6, atol=1e-9)


def test_snip_by_autograd(toy, toy_batches):
    session = Session(toy, toy_batches, "snip")
    session.masks((0.5,))
    mean = {name: torch.zeros_like(layer.weight) for name, layer in toy.prunable_layers().items()}
    for batch in toy_batches:
        gradients = torch.autograd.grad(toy.loss(batch["general"]), [toy.a.weight, toy.b.weight])
        for name, gradient in zip(mean, gradients, strict=True):
            mean[name] += gradient / len(toy_batches)
    for name, layer in toy.prunable_layers().items():
        torch.testing.assert_close(torch.from_numpy(session.pruner.scores()[name]), (mean[name] * layer.weight).abs())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_itersnip_by_rounds(toy, toy_batches, schedule):
    """Three rounds of two batches by hand: mask, fresh gradients, dead stays dead; the data starts over."""
    weights = {name: layer.weight.detach().clone() for name, layer in toy.prunable_layers().items()}
    alive = {name: torch.ones_like(weight).bool() for name, weight in weights.items()}
    order = [0, 1, 2, 3, 0, 1]
    for turn in range(3):
        with torch.no_grad():
            for name, layer in toy.prunable_layers().items():
                layer.weight.copy_(weights[name] * alive[name])
        mean = [torch.zeros_like(weight) for weight in weights.values()]
        for index in order[2 * turn : 2 * turn + 2]:
            loss = toy.loss(toy_batches[index]["general"])
            for total, gradient in zip(mean, torch.autograd.grad(loss, [toy.a.weight, toy.b.weight]), strict=True):
                total += gradient / 2
        reached = {"exp": 1 - 0.4 ** ((turn + 1) / 3), "linear": 0.2 * (turn + 1), "const": 0.6}[schedule]
        scores = torch.cat(
            [
                torch.where(alive[name], (g * weights[name]).abs(), -1).flatten()
                for g, name in zip(mean, weights, strict=True)
            ]
        )
        kept = torch.ones(20).bool()
        kept[torch.argsort(scores, stable=True)[: round(reached * 20)]] = False
        alive = {"a.weight": kept[:12].reshape(4, 3), "b.weight": kept[12:].reshape(2, 4)}
    with torch.no_grad():
        for name, layer in toy.prunable_layers().items():
            layer.weight.copy_(weights[name])
    mask = prune(toy, toy_batches, "itersnip", (0.6,), epochs=3, num_batches=2, schedule=schedule)[0.6]
    for name in weights:
        assert torch.equal(mask[name], alive[name])
        assert torch.equal(toy.prunable_layers()[name].weight, weights[name])


def test_schedules_end_at_the_sparsity_and_never_fall():
    for schedule in SCHEDULES.values():
        for s in (0.3, 0.9):
            steps = [schedule(s, t, 7) for t in range(1, 8)]
            assert steps[-1] == pytest.approx(s)
            assert all(0 < a <= b + 1e-12 for a, b in itertools.pairwise(steps))


def test_layers_never_met_are_named(toy, toy_batches):
    toy.observe = lambda batch: toy.a(batch["x"])
    with pytest.raises(Exception, match=r"layer 'b\.weight' received no input"):
        prune(toy, toy_batches, "multiflow", (0.5,))


def test_losses_that_miss_a_layer_are_named(toy, toy_batches):
    toy.loss = lambda batch: toy.a(batch["x"]).sum()
    with pytest.raises(Exception, match=r"the loss gives no gradient to 'b\.weight'"):
        prune(toy, toy_batches, "snip", (0.5,))
