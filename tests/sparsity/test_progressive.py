"""The sparsifier of gradual pruning on a model of two layers."""

import pytest
import torch

from sparsity.mask import Mask
from sparsity.progressive import Progressive
from sparsity.progressive_config import ProgressiveConfig
from tests.sparsity.test_sparsifiers import Two


def trained(given=None, steps=10, **config):
    """The model after so many steps, and its mask."""
    model, sparsifier = Two(), Progressive(ProgressiveConfig(sparsity=75.0, **config), given)
    sparsifier.attach(model)
    sparsifier.started(steps, 0)
    for step in range(1, steps + 1):
        model.zero_grad()
        model(torch.randn(4, 6, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        sparsifier.after_backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.01 * parameter.grad
        sparsifier.after_update(step)
        sparsifier.check()
    return model, sparsifier.finish()


@pytest.mark.parametrize("freeze", [False, True])
def test_a_given_mask_stays_in_other_modalities(freeze):
    given = Mask({"a.weight": torch.rand(8, 6) < 0.5, "b.weight": torch.rand(4, 8) < 0.5})
    model, mask = trained(given, prune="magnitude", modality="a", freeze=freeze)
    assert torch.equal(mask["b.weight"], given["b.weight"])
    assert mask.sparsity(["a.weight"]) == 0.75
    assert not model.b.weight[~given["b.weight"]].any()


@pytest.mark.parametrize("freeze", [False, True])
def test_a_window_that_ends_in_the_final_phase(freeze):
    """PLATON's first importances come at the last of ten steps, two after the sparsity has its final value."""
    model, mask = trained(prune="platon", freeze=freeze)
    assert mask.sparsity() == 0.75
    assert not model.a.weight[~mask["a.weight"]].any()
