"""Devices that are not there and precisions they cannot do are refused in words."""

import os

import pytest
import torch

from console.errors import InputError
from training.fabric import RENDEZVOUS, OneProcess, make_fabric, without_training


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("auto", 1, 1, "8"), "unknown precision '8': choose one of 32-true"),
        (("cpuu", 1, 1, "32-true"), "unknown accelerator 'cpuu'"),
        (("cpu", 0, 1, "32-true"), "devices and num_nodes must be at least 1, not 0 and 1"),
        (("cpu", 1, -1, "32-true"), "not 1 and -1"),
        (("gpu", 3, 1, "32-true"), r"3 GPUs requested, but 2 found"),
        (("cpu", 1, 1, "16-mixed"), "precision 16-mixed needs a GPU"),
        (("auto", 3, 1, "32-true"), r"3 GPUs requested, but 2 found: use --accelerator cpu or fewer"),
        (("cpu", 1, 2, "32-true"), "2 machines requested"),
        (("cpu", 1000, 1, "32-true"), r"1,000 processes requested on \d+ CPU cores?"),
    ],
)
def test_bad_requests(arguments, message, monkeypatch):
    for name in RENDEZVOUS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match=message):
        make_fabric(*arguments)


def test_without_a_gpu_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    fabric = make_fabric("auto", 1, 1, "bf16-mixed")
    assert fabric.device == torch.device("cpu")
    assert fabric.world_size == 1
    assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    with fabric.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_threads_that_the_user_chose_stay(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(3)  # as torch would have done at its start
    make_fabric("cpu", 1, 1, "32-true")
    assert torch.get_num_threads() == 3


def test_one_process_needs_no_lightning(monkeypatch):
    for name in RENDEZVOUS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    one = without_training("auto", 1, 1, "32-true")
    assert isinstance(one, OneProcess)
    layer = one.to_device(torch.nn.Linear(2, 2))
    assert layer.weight.device == make_fabric("auto", 1, 1, "32-true").device
    assert not isinstance(without_training("cpu", 1, 1, "bf16-mixed"), OneProcess)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert not isinstance(without_training("cpu", 1, 1, "32-true"), OneProcess)
