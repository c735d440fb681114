"""prune.py from end to end on the minis of BLIP, CLIP, DINO and ResNet, with random weights and a few pictures."""

import json

import pytest
import yaml

from configs.schema import read_yaml, task_file
from data.miniworld import ensure
from sparsity.mask import Mask


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    for part in ("calibration", "imagenet"):
        ensure(part, root, workers=1, show=False, scale=0.01)
    return root


@pytest.fixture
def config(world, tmp_path):
    """prune.yaml of a model, reading the small world."""

    def write(model):
        settings = read_yaml(task_file(model, "prune"))
        for reader in settings["sides"].values():
            reader["files"] = {**reader["files"], "miniworld": [], "root": str(world)}
        (tmp_path / "prune.yaml").write_text(yaml.safe_dump(settings))
        return tmp_path / "prune.yaml"

    return write


@pytest.mark.parametrize(
    ("model", "side", "classifier"),
    [
        ("blip-mini", "text", False),
        ("clip-mini", "text", False),
        ("dino-mini", "vision", True),
        ("resnet-mini", "vision", False),
    ],
)
@pytest.mark.parametrize("pruner", ["multiflow", "snip"])
def test_masks_of_the_asked_sparsity(model, side, classifier, pruner, config, run, tmp_path):
    done = run(
        "prune.py", "--model", model, "--weights", "random", "--pruner", pruner, "--config", config(model),
        "--output_dir", tmp_path, "-s", "63", "90", "--num_batches", "2", "--batch_size", "4",
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for sparsity in (63, 90):
        mask = Mask.load(tmp_path / pruner / f"{model}_{pruner}_{sparsity}_seed42.safetensors")
        assert mask.sparsity() == pytest.approx(sparsity / 100, abs=2e-6)
        assert mask.source["model"] == model
        assert side in mask.sparsity_by_modality()
        assert ("classifier" in mask.source) == (classifier and pruner == "snip"), "a result says where it came from"


def test_chita_counts_its_data_once(config, run, tmp_path):
    """One sparsity or two: the same calibration, and where the gradients lay is no part of the result."""
    (tmp_path / "scratch").mkdir()
    manifests, masks = [], []
    for number, arguments in enumerate((("-s", "75"), ("-s", "63", "75", "--scratch_dir", str(tmp_path / "scratch")))):
        out = tmp_path / str(number)
        done = run(
            "prune.py", "--model", "dino-mini", "--weights", "random", "--pruner", "chita", "--resume",
            "--config", config("dino-mini"), "--output_dir", out, "--num_batches", "3", "--batch_size", "4", *arguments,
            OMP_NUM_THREADS="1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "saves nothing of an interrupted run" in done.stdout + done.stderr
        manifests.append(json.loads((out / "chita/dino-mini_chita_seed42_calibration.json").read_text()))
        masks.append((out / "chita/dino-mini_chita_75_seed42.safetensors").read_bytes())
    assert manifests[0] == manifests[1]
    assert manifests[0]["steps"] == 3
    assert masks[0] == masks[1]
    assert not list((tmp_path / "scratch").iterdir())


def test_a_scratch_folder_that_is_not_there(run, tmp_path):
    done = run("prune.py", "--model", "dino-mini", "--pruner", "chita", "--scratch_dir", tmp_path / "none")
    assert done.returncode == 2
    assert "is not a folder: make it, or choose another" in done.stderr
