"""Repair in closed form: the exact least-squares solution of a toy, less error of outputs in models of each kind."""

import pytest
import torch
from torch import nn

from models.library.parts import units_of
from models.parts import Units, all_sets
from models.surgery import cut
from models.wrap import wrap
from shrinking.repair import cut_repaired, input_moments, repaired
from tests.models.test_parts import FAMILIES, shaken


@pytest.mark.parametrize("bias", [True, False])
def test_exact_least_squares(bias):
    """What torch's solver finds for outputs on the inputs that stay; the model itself is as before."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3, bias=bias))
    model = wrap(
        net,
        forward=lambda net, batch: net(batch["x"]),
        parts=lambda net: [units_of(net, "mlp", "neurons", feeds=["0"], reads="2")],
    )
    batches = [{"x": torch.randn(40, 6) + 1} for _ in range(3)]
    stays = torch.tensor([True, False, True, True, False, True, False, True])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    kept = {"mlp": stays}
    with repaired(model, kept, input_moments(model, kept, lambda: batches), damp=0):
        small = cut(model, kept).module
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with torch.no_grad():
        inputs = torch.cat([net[:2](batch["x"]) for batch in batches]).double()
        outputs = inputs @ net[2].weight.double().t() + (net[2].bias.double() if bias else 0)
    known = torch.cat([inputs[:, stays], torch.ones(len(inputs), int(bias)).double()], dim=1)
    expected = torch.linalg.lstsq(known, outputs).solution.t()
    torch.testing.assert_close(small[2].weight.double(), expected[:, :5], rtol=1e-4, atol=1e-5)
    if bias:
        torch.testing.assert_close(small[2].bias.double(), expected[:, 5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "timm vit, gated", "hf CLIP", "blip", "xvlm"])
def test_outputs_are_nearer(name):
    """Half of the units of one set go: what the whole pass observes at the reader is nearer to what it was."""
    torch.manual_seed(0)
    model = shaken(FAMILIES[name]())
    (one, *_), batch = [one for one in all_sets(model) if isinstance(one, Units)], model.example(8)[model.sides[0]]
    kept = {one.name: torch.arange(one.count) % 2 == 0}
    path = one.consumer.removesuffix(".weight")
    outputs = []
    for made in (model, cut(model, kept), cut_repaired(model, kept, lambda: [batch])):
        noted = []
        handle = made.inner.get_submodule(path).register_forward_hook(lambda *call, noted=noted: noted.append(call[2]))
        with torch.no_grad():
            made.eval().observe(batch)
        handle.remove()
        outputs.append(noted[0])
    apart = [float((found - outputs[0]).square().mean()) for found in outputs[1:]]
    assert 0 <= apart[1] < apart[0]
