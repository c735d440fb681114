"""Gradual pruning against the published program, step by step, and its selection against sorting."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from console.errors import InputError
from sparsity.gradual import SMALL, Gradual, smallest
from tests.conftest import REFERENCE

FILE = REFERENCE / "vectors" / "platon" / "platon.safetensors"
METHODS = {"PLATON": "platon", "Taylor": "taylor", "Magnitude": "magnitude"}
BETAS = {"beta2_1": (0.85, 1.0), "beta2_0": (0.85, 0.0)}


def tags():
    with safe_open(FILE, "pt") as file:
        found = sorted(key.removesuffix(".ratio") for key in file.keys() if key.endswith(".ratio"))  # noqa: SIM118
    return [tag for tag in found if not tag.endswith("published")]  # a rule of its own


def parameters(start, shapes):
    sizes = [torch.Size(shape).numel() for _, shape in shapes]
    parts = start.split(sizes)
    return {name: nn.Parameter(part.view(shape).clone()) for (name, shape), part in zip(shapes, parts, strict=True)}


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("tag", tags())
def test_replays_the_published_program(tag):
    """Every mask falls when it fell there, and has its bits; weights and states are its own to float32's rounding."""
    kind, method = tag.split(".")
    with safe_open(FILE, "pt") as file:
        about = file.metadata()
        known = {key.removeprefix(f"{tag}."): file.get_tensor(key) for key in file.keys() if key.startswith(f"{tag}.")}  # noqa: SIM118
        start, gradients, ids = (file.get_tensor(f"{kind}.{name}") for name in ("start", "gradients", "id"))
    shapes = json.loads(about[f"{kind}.parameters"])
    total, warm, first, last, interval = (int(about[name]) for name in ("steps", "warm", "ti", "tf", "dT"))
    weights = parameters(start, shapes)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in weights))
    factors = {name: ids[layers.index(name.rpartition(".")[0])].item() for name in weights}
    gradual = Gradual(
        METHODS[method.partition("_")[0]], weights, total=total, sparsity=1 - float(about["final"]),
        dense_steps=first * warm, final_steps=last * warm, interval=interval,
        layer_weights=factors if method.endswith("_id") else None,
        count=lambda size, remaining: int(size * (1 - remaining)) - 1,
        betas=BETAS.get(method.partition("_")[2], (0.85, 0.95)),
    )  # fmt: skip
    for step in range(1, total + 1):
        of_step = parameters(gradients[step - 1], shapes)
        for name, weight in weights.items():
            weight.grad = of_step[name].detach()
            weight.data -= float(about["lr"]) * weight.grad
        assert gradual.update(step) == bool(known["masked"][step - 1])
        assert gradual.remaining(step) == pytest.approx(known["ratio"][step - 1].item(), abs=1e-12)
        density = flat(weights.values()).count_nonzero().item() / start.numel()
        assert density == pytest.approx(known["density"][step - 1].item(), abs=1e-9)
        if (right := known.get(f"step{step}.weights")) is not None:
            found = flat(weights.values())
            assert torch.equal(found == 0, right == 0)
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-6)
        for state, tensors in gradual.states.items():
            if (right := known.get(f"step{step}.{state}")) is not None:
                atol = 1e-6 * right.abs().max().item()
                torch.testing.assert_close(flat(tensors.values()), right, rtol=0, atol=atol)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=12), min_size=1, max_size=4),
    st.data(),
)
def test_the_smallest_by_value_then_by_position(layers, data):
    tensors = {f"{i}": torch.tensor(values) for i, values in enumerate(layers)}
    together = [value for values in layers for value in values]
    count = data.draw(st.integers(1, len(together)))
    value, found = smallest(tensors.__getitem__, list(tensors), len(together), count)
    gone = sorted(range(len(together)), key=lambda i: (together[i], i))[:count]
    assert flat(found.values()).nonzero().flatten().tolist() == sorted(gone)
    assert count == len(together) or value == sorted(together)[count - 1]


@pytest.mark.parametrize("kind", ["random", "few values", "one value", "two tails"])
@pytest.mark.parametrize("share", [0.001, 0.37, 0.999])
def test_the_smallest_of_many(kind, share):
    """Too many to be sorted at once: a sample brackets the value, whatever the scores are like."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(3 * SMALL, generator=generator)
    scores = {
        "random": scores, "few values": (scores * 4).floor(), "one value": torch.ones_like(scores),
        "two tails": torch.where(scores < 0.37, scores * 1e-20, scores * 1e20),
    }[kind]  # fmt: skip
    parts = dict(zip("abc", scores.view(3, 256, -1), strict=True))
    count = round(share * scores.numel())
    _, found = smallest(parts.__getitem__, list(parts), scores.numel(), count)
    expected = torch.zeros_like(scores, dtype=torch.bool)
    expected[torch.sort(scores, stable=True).indices[:count]] = True
    assert torch.equal(flat(found.values()), expected)


def made(method="magnitude", **options):
    torch.manual_seed(0)
    weights = {"a": nn.Parameter(torch.randn(4, 5)), "b": nn.Parameter(0.01 * torch.randn(3, 4))}
    plan = {"total": 20, "sparsity": 0.5, "dense_steps": 4, "final_steps": 4, "interval": 4}
    return weights, Gradual(method, weights, **(plan | options))


def step(weights, gradual, number):
    generator = torch.Generator().manual_seed(number)
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape, generator=generator)
        weight.data -= 0.01 * weight.grad
    return gradual.update(number)


def test_no_mask_before_importances_are_there():
    """All scores are zero until a window has ended: ties would prune by position."""
    weights, gradual = made("platon", dense_steps=0, interval=7)
    fell = [number for number in range(1, 21) if step(weights, gradual, number)]
    assert fell == [7, 14, 17, 18, 19, 20]


def test_epochs_end_with_a_mask():
    weights, gradual = made(epoch=6)
    assert [number for number in range(1, 21) if step(weights, gradual, number)] == [6, 8, 12, 16, 17, 18, 19, 20]


def test_every_layer_keeps_its_least():
    weights, gradual = made(min_kept=lambda weights: 3)
    for number in range(1, 21):
        step(weights, gradual, number)
    assert sum(weight.count_nonzero().item() for weight in weights.values()) == 16
    assert weights["b"].count_nonzero() == 3  # its weights are a hundredth as large


def test_what_is_gone_counts():
    gone = {"a": torch.zeros(4, 5, dtype=torch.bool), "b": torch.zeros(3, 4, dtype=torch.bool)}
    gone["a"][:2] = True
    weights, gradual = made(pruned=gone)
    for number in range(1, 21):
        step(weights, gradual, number)
        if number >= 8:
            assert not gradual.mask or gradual.mask["a"][:2].all()
    assert sum(bits.sum().item() for bits in gradual.mask.values()) == 16


def test_equal_factors_change_nothing():
    plain, first = made("platon")
    scaled, second = made("platon", layer_weights={"a": 7.0, "b": 7.0})
    for number in range(1, 21):
        step(plain, first, number)
        step(scaled, second, number)
    assert all(torch.equal(first.mask[name], second.mask[name]) for name in plain)


@pytest.mark.parametrize("method", ["platon", "taylor"])
def test_skipped_steps_do_not_count(method):
    weights, gradual = made(method, may_overflow=True)
    for number in range(1, 9):
        step(weights, gradual, number)
    before = {kind: flat(tensors.values()) for kind, tensors in gradual.states.items()}
    weights["a"].grad[0, 0] = float("inf")
    mask = gradual.mask
    assert gradual.update(12) == (method == "platon")
    assert (gradual.mask is mask) == (method == "taylor")
    assert all(torch.equal(before[kind], flat(tensors.values())) for kind, tensors in gradual.states.items())


@pytest.mark.parametrize("stop", [1, 7, 8, 17, 19])
def test_a_state_that_is_restored_goes_on_the_same(stop):
    weights, gradual = made("platon")
    for number in range(1, 21):
        if number == stop + 1:
            state, tensors = gradual.state_dict(), {name: weight.detach().clone() for name, weight in weights.items()}
            state = json_and_back(state)
        step(weights, gradual, number)
    others, again = made("platon")
    for name, weight in others.items():
        weight.data.copy_(tensors[name])
    again.load_state_dict(state)
    for number in range(stop + 1, 21):
        step(others, again, number)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def json_and_back(state):
    """A deep copy, as a snapshot makes one."""
    if isinstance(state, dict):
        return {key: json_and_back(value) for key, value in state.items()}
    return state.clone() if isinstance(state, torch.Tensor) else state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "platton"}, r"unknown method 'platton' \(did you mean 'platon'\?\)"),
        ({"dense_steps": 18}, "of 20 steps the first 18 cannot be dense and the last 4 at the final sparsity"),
        ({"final_steps": 0}, "of 20 steps"),
        ({"method": "platon", "interval": 21}, "platon has its first importances after 21 steps, but the run has 20"),
    ],
)
def test_plans_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=message):
        made(**options)
