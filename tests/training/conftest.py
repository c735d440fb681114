"""What several tests of finetuning share; drawn once a process. Files with other needs have fixtures of their own."""

import pytest
import torch

from models import load_model
from pruners import prune
from tests.training.small_finetuning import small_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The folder of a mini world of some thirty pictures."""
    return small_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def mask(tmp_path_factory):
    """xvlm-mini's mask file at 75 %, by magnitude."""
    path = tmp_path_factory.mktemp("mask") / "omp75.safetensors"
    prune(load_model("xvlm-mini"), [], "omp", (0.75,))[0.75].save(path)
    return path


@pytest.fixture
def quick(monkeypatch):
    """Everything of torch.compile but the generated code, which is what takes its seconds."""
    compile_ = torch.compile
    calls = []

    def without_code(function, **options):
        calls.append(options)
        return compile_(function, backend="aot_eager", **options)

    monkeypatch.setattr(torch, "compile", without_code)
    torch._dynamo.reset()
    yield calls
    torch._dynamo.reset()


@pytest.fixture
def one_thread():
    """Sums in the same order as in the processes that are compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
