"""prune.py from end to end on BLIP's and DINO's minis, with random weights and a few pictures."""

import pytest
import yaml

from configs.schema import read_yaml, task_file
from data.miniworld import ensure
from pruners.mask import Mask


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    for part in ("calibration", "imagenet"):
        ensure(part, root, workers=1, show=False, scale=0.01)
    return root


@pytest.mark.parametrize(("model", "side", "classifier"), [("blip-mini", "text", False), ("dino-mini", "vision", True)])
@pytest.mark.parametrize("pruner", ["multiflow", "snip"])
def test_masks_of_the_asked_sparsity(model, side, classifier, pruner, world, run, tmp_path):
    settings = read_yaml(task_file(model, "prune"))
    for reader in settings["sides"].values():
        reader["files"] = {**reader["files"], "miniworld": [], "root": str(world)}
    (tmp_path / "prune.yaml").write_text(yaml.safe_dump(settings))
    done = run(
        "prune.py", "--model", model, "--weights", "random", "--pruner", pruner, "--config", tmp_path / "prune.yaml",
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
