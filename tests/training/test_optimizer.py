"""Which parameter decays and learns how fast."""

import math

import pytest
import torch
from torch import nn

from configs.schema import read_yaml, task_file
from console.errors import InputError
from models import load_task_model
from tests.conftest import REFERENCE
from training.optimizer import Recipe, make_optimizer, set_rate


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
        self.head = nn.Linear(3, 2)
        self.frozen = nn.Linear(3, 2)
        self.frozen.requires_grad_(False)


def of_each_parameter(module, optimizer):
    """Name -> (decay, rate), every parameter in one group only."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["weight_decay"], group["lr"])
    return found


def test_groups():
    module = Small()
    recipe = Recipe(lr=0.1, weight_decay=0.5, no_decay=["bias", "tower.1."], lr_scale={"head.": 10.0, "tower.": 0.1})
    optimizer = make_optimizer(module.named_parameters(), recipe)
    assert of_each_parameter(module, optimizer) == {
        "tower.0.weight": (0.5, pytest.approx(0.01)),
        "tower.0.bias": (0.0, pytest.approx(0.01)),
        "tower.1.weight": (0.0, pytest.approx(0.01)),
        "tower.1.bias": (0.0, pytest.approx(0.01)),
        "head.weight": (0.5, pytest.approx(1.0)),
        "head.bias": (0.0, pytest.approx(1.0)),
    }


@pytest.mark.parametrize("task", ["retrieval", "captioning", "captioning_pretrain", "vqa"])
@pytest.mark.parametrize(("name", "config"), [("xvlm", REFERENCE / "xvlm.yaml"), ("xvlm-mini", None)])
def test_norms_and_biases_of_xvlm_do_not_decay(name, config, task):
    """By the kind of their modules; but for the norm in the matching head, which the published list forgets, too."""
    model = load_task_model(name, task.removesuffix("_pretrain"), config=config, weights="random")
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    known = {id(parameter) for norm in norms for parameter in norm.parameters()}
    wanted = {n for n, parameter in model.named_parameters() if id(parameter) in known or n.endswith("bias")}
    parts = read_yaml(task_file(name, task))["recipe"]["no_decay"]
    optimizer = make_optimizer(model.named_parameters(), Recipe(lr=0.1, weight_decay=0.5, no_decay=parts))
    free = {n for n, (decay, _) in of_each_parameter(model, optimizer).items() if decay == 0}
    assert len(norms) > 10 and wanted - free == ({"itm_head.1.weight"} if task == "retrieval" else set())
    assert free <= wanted


def test_the_schedule_scales_every_group():
    module = Small()
    optimizer = make_optimizer(module.named_parameters(), Recipe(lr=0.1, lr_scale={"head": 10.0}))
    for factor in (0.5, 0.25, 1.0):  # not a product of all factors so far
        assert set_rate(optimizer, factor) == pytest.approx(factor)
        rates = of_each_parameter(module, optimizer)
        assert rates["head.bias"][1] == pytest.approx(factor)
        assert rates["tower.0.bias"][1] == pytest.approx(0.1 * factor)


def test_one_step_by_hand():
    """AdamW's first step: w - lr * decay * w - lr * g / (|g| + eps), decoupled decay."""
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, 2.0)
    nn.init.constant_(module.bias, 3.0)
    optimizer = make_optimizer(module.named_parameters(), Recipe(lr=0.1, weight_decay=0.3, eps=0.5, no_decay=["bias"]))
    module(torch.tensor([[4.0]])).sum().backward()  # gradients 4 and 1
    optimizer.step()
    assert module.weight.item() == pytest.approx(2 - 0.1 * 0.3 * 2 - 0.1 * 4 / 4.5)
    assert module.bias.item() == pytest.approx(3 - 0.1 * 1 / 1.5)


def filled():
    """33 weights a row: no whole number of a processor's vectors."""
    module = nn.Linear(33, 7)
    nn.init.constant_(module.bias, 0.5)
    module.weight.data = torch.linspace(-1, 1, 33 * 7).reshape(7, 33)
    return module


def test_one_kernel_takes_the_same_steps():
    trained = []
    for fused in (False, True):
        module = filled()
        optimizer = make_optimizer(
            module.named_parameters(), Recipe(lr=0.1, weight_decay=0.3, no_decay=["bias"]), fused=fused
        )
        for number in range(5):
            module(torch.full((2, 33), number - 1.5)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        trained.append(module)
    plain, fused = trained
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())
    assert not torch.equal(plain.weight, filled().weight)


def test_betas_reach_the_optimizer():
    optimizer = make_optimizer(Small().named_parameters(), Recipe(lr=0.1, betas=[0.5, 0.75]))
    assert all(group["betas"] == (0.5, 0.75) for group in optimizer.param_groups)


def test_nothing_to_train():
    with pytest.raises(InputError, match="no parameter requires gradients"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False).named_parameters(), Recipe(lr=0.1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": -1.0}, "lr must be a number from 0 up, not -1.0"),
        ({"lr": math.nan}, "lr must be"),
        ({"lr": math.inf}, "lr must be"),
        ({"lr": 0.1, "weight_decay": -0.1}, "weight_decay must be"),
        ({"lr": 0.1, "eps": -1e-8}, "eps must be"),
        ({"lr": 0.1, "betas": [0.9]}, "betas are two numbers"),
        ({"lr": 0.1, "betas": [0.9, 1.0]}, "betas are two numbers"),
        ({"lr": 0.1, "clip": 0.0}, "clip must be above 0"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(InputError, match=message):
        Recipe(**values)
