"""What several tests of finetuning share; drawn once a process. Files with other needs have fixtures of their own."""

import pytest

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
