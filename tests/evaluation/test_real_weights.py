"""Real weights and pictures of packages: skipped, with what is missing, where they are not installed."""

import json
from collections import Counter

import pytest
from safetensors.torch import load_file

from configs.schema import read_yaml
from studies.results import read_records
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.real, pytest.mark.slow]

MODELS = ("dual-stamps", "dinov2-small", "efficientnet-lite0", "minilm")


def needed(*paths):
    for path in paths:
        if not (REPOSITORY / path).exists():
            pytest.skip(f"{path} is not there: docs/results/real.md says how to get it")


@pytest.mark.parametrize("model", MODELS)
def test_dense_models_score_as_in_the_results(model, run, tmp_path):
    """Other machines, the same numbers: a point more or less is one picture of 185 that another rounding moved."""
    needed("data/stamps", read_yaml(REPOSITORY / "configs" / model / "model.yaml")["weights"])
    done = run("-m", "evaluation.zero_shot", "--model", model, "--json", tmp_path / "found.json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "found.json").read_text())
    dense = {"model": model, "task": "zero_shot", "pruner": "dense"}
    known = [
        record.result["metrics"]
        for record in read_records(REPOSITORY / "results" / "real.jsonl.xz")
        if dense.items() <= record.result["axes"].items()
    ]
    assert any(metrics == pytest.approx({name: row[name] for name in metrics}, abs=0.6) for metrics in known)


def test_the_dual_encoder_is_made_again_bit_for_bit(run, tmp_path):
    needed("data/stamps", *(f"weights/hf/{name}" for name in MODELS if name.startswith(("d", "m"))))
    done = run("-m", "pretraining.dual_encoder", "--output_dir", tmp_path / "dual")
    assert done.returncode == 0, done.stderr
    folders = tmp_path / "dual", REPOSITORY / "weights/hf/dual-stamps"
    one, two = (load_file(folder / "model.safetensors") for folder in folders)
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)


def test_the_stamps_of_the_package():
    needed("data/stamps")
    pictures = json.loads((REPOSITORY / "data/stamps/manifest.json").read_text())["pictures"]
    assert Counter(name.partition("/")[0] for name in pictures) == {"train": 656, "val": 97, "test": 185}
    assert all((REPOSITORY / "data/stamps/images" / name).is_file() for name in pictures)
