"""Backward passes that compute activations twice: the same gradients, blocks as they were before."""

import pytest
import torch
from torch import nn

from models import load_model
from models.common.blocks import activations_recomputed, repeated_blocks


def gradients(model, batch):
    model.zero_grad()
    torch.manual_seed(3)  # of the negatives
    model.loss(batch).backward()
    return {name: layer.weight.grad.clone() for name, layer in model.prunable_layers().items()}


@pytest.mark.parametrize("name", ["xvlm-mini", "blip-mini", "dino-mini"])
def test_gradients_are_the_same_bit_for_bit(name):
    model = load_model(name, weights="random")
    for side, batch in model.example(3).items():
        moving = [tensor.detach().clone() for tensor in model.moving_tensors()]
        kept = gradients(model, batch)
        with torch.no_grad():
            for tensor, value in zip(model.moving_tensors(), moving, strict=True):
                tensor.copy_(value)
        with activations_recomputed(model):
            again = gradients(model, batch)
        for layer, gradient in kept.items():
            assert torch.equal(gradient, again[layer]), f"{side}: {layer}"


def test_every_block_is_computed_twice():
    model = load_model("dino-mini", weights="random")
    blocks = repeated_blocks(model)
    inner = []
    linears = [next(module for module in block.modules() if isinstance(module, nn.Linear)) for block in blocks]
    hooks = [linear.register_forward_hook(lambda *_: inner.append(1)) for linear in linears]
    (batch,) = model.example(2).values()

    with activations_recomputed(model):
        loss = model.loss(batch)
        assert len(inner) == len(blocks)
        loss.backward()
    assert len(inner) == 2 * len(blocks), "once for the loss, once for its gradient"
    for hook in hooks:
        hook.remove()


def test_blocks_are_put_back_whatever_happens():
    model = load_model("xvlm-mini", weights="random")
    own = {name: module.forward.__func__ for name, module in model.named_modules()}
    with pytest.raises(RuntimeError, match="on the way"), activations_recomputed(model):
        raise RuntimeError("on the way")
    assert {name: module.forward.__func__ for name, module in model.named_modules()} == own
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_block_used_twice_is_one_block():
    block, other = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2))
    model = nn.ModuleDict({"first": nn.ModuleList([block, block]), "second": nn.ModuleList([other, block])})
    assert repeated_blocks(model) == [block, other]
    with activations_recomputed(model):
        block(block(torch.ones(2))).sum().backward()
    assert "forward" not in vars(block)


def test_without_repeated_blocks_nothing_changes():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with activations_recomputed(model):
        assert not any("forward" in vars(module) for module in model.modules())
