"""The loss along random directions: against the gradient's own products with them."""

import pytest
import torch
from torch import nn

from calibration.loss_changes import LossChanges
from calibration.processes import Group
from console.errors import InputError
from models import load_model
from models.wrap import wrap
from pruners import prune
from pruners.session import Session
from sparsity.allocation import check_kept
from tests.models.generative import saved


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    blocks = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)}) for _ in range(2))
    module = nn.ModuleDict({"blocks": blocks, "head": nn.Linear(6, 3)})

    def run(module, batch):
        x = batch["x"]
        for number, block in enumerate(module["blocks"]):
            x = x + (1 + 9 * number) * torch.tanh(block["b"](block["a"](x)))
        return module["head"](torch.nn.functional.dropout(x, 0.5))

    model = wrap(module, forward=run, loss=lambda module, batch: run(module, batch).square().mean())
    return model, [{"x": torch.randn(5, 6)} for _ in range(5)]


def test_changes_are_the_gradients_products(net):
    """Of each unit, with the direction that it draws; a block has the sum of its layers."""
    model, batches = net
    layers = model.prunable_layers()
    made, expected = LossChanges(model, layers), dict.fromkeys(layers, 0.0)
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    for seed, batch in enumerate(batches[:2]):
        torch.manual_seed(seed)
        made.update(batch)
        made.merge(Group(), [0])
        torch.manual_seed(seed)
        for name, layer in layers.items():
            noise = torch.randn_like(layer.weight)
            with torch.random.fork_rng(devices=[]):
                gradient = torch.autograd.grad(model.loss(batch), layer.weight)[0]
            expected[name] += abs(float((gradient * noise).sum()))
    found = made.importance()
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())
    for block in ("blocks.0.", "blocks.1.", "head."):
        own = [name for name in layers if name.startswith(block)]
        for name in own:
            assert found[name] == pytest.approx(sum(expected[n] for n in own), rel=0.02)


def test_the_block_that_the_loss_feels_keeps_more(net):
    model, batches = net
    session = Session(model, batches, "wanda", allocation="ecoflap")
    mask = session.masks((0.5,))[0.5]
    check_kept("ecoflap", mask, 0.5)
    kept = {name: mask.kept(name) / mask.size(name) for name in mask}
    rank = session.pruner.importance
    assert rank["blocks.0.a.weight"] != rank["blocks.1.a.weight"]
    assert (kept["blocks.1.a.weight"] > kept["blocks.0.a.weight"]) == (
        rank["blocks.1.a.weight"] > rank["blocks.0.a.weight"]
    )
    assert prune(model, batches, "wanda", (0.5,), allocation="ecoflap")[0.5] == mask


def test_the_loss_needs_the_whole_model(tmp_path):
    streamed = load_model(f"hf:{saved(tmp_path / 'model', 'Llava')}", overrides={"stream": True})
    with pytest.raises(InputError, match="'ecoflap' computes the loss of the whole model"):
        prune(streamed, [{}], "wanda", (0.5,), allocation="ecoflap")
