"""Gradients of pruning and of training repeat bit for bit, on several threads, too."""

import pytest
import torch

from calibration.preserve import preserved
from models import load_model
from models.common.repeatable import repeat_on_cpu
from training.fabric import make_fabric


@pytest.fixture
def two_threads():
    """Sums in another order are possible only there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)
    repeat_on_cpu(False, False, True)


@pytest.mark.parametrize("name", ["xvlm-mini", "blip-mini"])
def test_gradients_repeat(two_threads, name):
    """Hard negatives and regions read the same image more than once."""
    model = load_model(name)
    torch.manual_seed(0)
    batches = model.example(16)

    def gradients():
        with preserved(model, gradients=True):
            torch.manual_seed(1)
            sum(model.loss(batch) for batch in batches.values()).backward()
            return [layer.weight.grad.clone() for layer in model.prunable_layers().values()]

    first = gradients()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_repeats(two_threads):
    make_fabric("cpu", 1, 1, "32-true")
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
