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
    repeat_on_cpu(False, False, True)  # a run of another test may have switched it on
    yield
    torch.set_num_threads(threads)
    repeat_on_cpu(False, False, True)


def test_gradients_repeat(two_threads):
    """Rows that are read more than once, as images are by hard negatives: several threads add their gradients."""
    torch.manual_seed(0)
    rows, weights, index = torch.randn(16, 50, 128), torch.randn(16, 50, 128), torch.randint(0, 4, (16,))

    def gradient():
        x = rows.clone().requires_grad_(True)
        (x[index] * weights).sum().backward()
        return x.grad

    with preserved(load_model("resnet-mini"), gradients=True):
        first = gradient()
        assert all(torch.equal(first, gradient()) for _ in range(20))
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_repeats(two_threads):
    make_fabric("cpu", 1, 1, "32-true")
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
