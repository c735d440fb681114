"""Training under a mask: what was pruned is exactly zero, whatever the optimizer and the precision do."""

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

import training.loop
from console.errors import InputError
from models.base import Model
from sparsity.mask import Mask
from sparsity.sparsifiers import Fixed
from tests.training.toy import loop
from training.loop import Callback
from training.optimizer import Recipe

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


class Two(Model):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(4, 2)

    def prunable_layers(self):
        return {"a.weight": self.a, "b.weight": self.b}

    def modality_of(self, name):
        return name[0]

    def forward(self, x):
        return self.head(self.b(self.a(x).tanh()).tanh())


def attached(model, mask):
    fixed = Fixed(mask)
    fixed.attach(model)
    return fixed


@pytest.fixture
def mask():
    generator = torch.Generator().manual_seed(1)
    kept = {"a.weight": torch.rand(8, 6, generator=generator) > 0.5, "b.weight": torch.eye(4, 8).bool()}
    return Mask(kept, modalities={"a.weight": "a", "b.weight": "b"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_stay_exactly_zero(optimizer, dtype, mask):
    model = Two().to(dtype)
    fixed = attached(model, mask)
    steps = OPTIMIZERS[optimizer](model.parameters())
    before = {name: layer.weight.detach().clone() for name, layer in model.prunable_layers().items()}
    for step in range(5):
        model(torch.randn(16, 6, dtype=dtype, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        fixed.after_backward()
        steps.step()
        steps.zero_grad()
    fixed.check()
    for name, layer in model.prunable_layers().items():
        assert (layer.weight[~mask[name]] == 0).all()
        assert (layer.weight[mask[name]] != before[name][mask[name]]).any()


class Squared(nn.Module):
    """As the loop trains it: named losses."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return {"square": self.model(x).float().square().sum()}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_are_zero_after_every_epoch(optimizer, precision, mask, tmp_path, monkeypatch):
    """Three epochs of two steps of two micro-batches, with clipping and a rate that changes; a crash in the second."""

    def make_optimizer(named, recipe, fused):
        made = OPTIMIZERS[optimizer]([p for _, p in named])
        for group in made.param_groups:
            group["peak"] = group["lr"]
        return made

    def micro_batches(first):
        while True:
            yield torch.randn(16, 6, generator=torch.Generator().manual_seed(first))
            first += 1

    def train(model, stop=None):
        fixed = attached(model, mask)

        def look(epoch):
            fixed.check()
            layers = model.prunable_layers()
            seen[epoch] = {name: layer.weight.detach().float().clone() for name, layer in layers.items()}
            if epoch == stop:
                raise MemoryError

        changes = {"steps": 6, "epoch": 2, "accumulate": 2, "recipe": Recipe(lr=0.1, clip=1.0), "snapshot_seconds": 0.0}
        run = loop(tmp_path, sparsifier=fixed, callbacks=[Callback(after_epoch=look)], **changes)
        training.loop.fit(fabric, Squared(model), micro_batches, run)

    monkeypatch.setattr(training.loop, "make_optimizer", make_optimizer)
    fabric, seen = Fabric(accelerator="cpu", devices=1, precision=precision), {}
    with pytest.raises(MemoryError):
        train(Two(), stop=2)
    model = Two()
    train(model)
    assert model.a.weight.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)
    assert list(seen) == [1, 2, 3]
    for weights in seen.values():
        for name, weight in weights.items():
            assert (weight[~mask[name]] == 0).all()
            assert (weight[mask[name]] != 0).float().mean() > 0.8  # in bfloat16 a kept one may pass through 0
    assert (seen[1]["a.weight"] != seen[3]["a.weight"]).any()


def test_pruned_gradients_do_not_affect_the_norm(mask):
    model = Two()
    fixed = attached(model, mask)
    model(torch.ones(4, 6)).sum().backward()
    expected = sum((layer.weight.grad * mask[name]).square().sum() for name, layer in model.prunable_layers().items())
    fixed.after_backward()
    found = sum(layer.weight.grad.square().sum() for layer in model.prunable_layers().values())
    assert found.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_gradient_is_zeroed_where_pruned(dtype, mask):
    model = Two().to(dtype)
    fixed = attached(model, mask)
    strange = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 1e-7, -3.25, 6e4], dtype=dtype)
    for name, layer in model.prunable_layers().items():
        for shift in range(len(strange)):
            layer.weight.grad = strange.roll(shift).repeat(10)[: layer.weight.numel()].view_as(layer.weight).clone()
            before = layer.weight.grad.clone()
            fixed.after_backward()
            torch.testing.assert_close(
                layer.weight.grad, before.masked_fill(~mask[name], 0), equal_nan=True, rtol=0, atol=0
            )
            layer.weight.grad = layer.weight.grad.t().contiguous().t()  # in another order in memory
            fixed.after_backward()
            assert (layer.weight.grad[~mask[name]] == 0).all()


def test_a_weight_that_moves_is_found(mask):
    model = Two()
    fixed = attached(model, mask)
    with torch.no_grad():
        model.b.weight[0, 1] = 1.0e-30
    with pytest.raises(RuntimeError, match=r"1 pruned weights of 'b\.weight' have changed"):
        fixed.check()


def test_a_mask_of_another_model():
    with pytest.raises(InputError, match="belongs to another model"):
        attached(Two(), Mask({"a.weight": torch.ones(8, 6).bool()}))
