"""A task and a reader that the toolkit does not know, one file and one line each, from pruning to a report.

Models and pruners are added by the pages docs/add-a-model.md and docs/add-a-pruner.md, which tests/docs/ follows.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from configs.schema import parse
from data.calibration import CalibrationBatches
from data.classification import Classification, ImagesToClassify
from data.labelled import LabelledSet
from data.miniworld import ensure
from models import load_model, load_task_model
from pruners import prune
from sparsity.mask import Mask
from tests.conftest import ended, started
from tests.training.small_finetuning import flowers

ROOT = Path(__file__).parents[2]
LEFT = ("tests", "docs", "results", "cache", "pruned_weights", "runs", "benchmarks", ".*")
LINES = {
    "tasks/__init__.py": '        "brightness": "brightness:Brightness",\n',
    "data/readers.py": '        "negatives": "negatives:Negatives",\n',
}
GRID = {"models": ["dino-mini"], "pruners": ["omp"], "sparsities": [75], "seeds": [0], "tasks": ["brightness"]}


def call(folder, words):
    (done,) = ended([started(*words.split(), cwd=folder, PYTHONPATH="")], 600)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the toolkit with the file, the line, and a configuration; a grid's results and report in it."""
    house = tmp_path_factory.mktemp("with_a_task") / "house"
    shutil.copytree(ROOT, house, ignore=shutil.ignore_patterns(*LEFT, "__pycache__"))
    for name, line in LINES.items():
        shutil.copy(Path(__file__).with_name(line.split('"')[3].partition(":")[0] + ".py"), house)
        before, mark, after = (house / name).read_text().partition("    },\n")
        (house / name).write_text(before + line + mark + after)

    world = ensure("flowers102", house / "world", workers=1, show=False, scale=0.02)
    settings = flowers(world)
    settings |= settings.pop("datasets")["flowers102"] | {"epochs": 2, "batch_size": 8}
    (house / "configs" / "dino-mini" / "brightness.yaml").write_text(yaml.safe_dump(settings))
    general = {"reader": "negatives", "files": settings["train"]["files"], "splits": ["train"]}
    pruning = {"pruner": "wanda", "sparsities": [75], "num_batches": 2, "batch_size": 8, "sides": {"general": general}}
    (house / "negatives.yaml").write_text(yaml.safe_dump(pruning))
    (house / "grid.yaml").write_text(yaml.safe_dump(GRID))
    call(house, "experiments.py run grid.yaml --jobs 1 --accelerator cpu")
    call(house, "experiments.py report results/grid")
    return house


@pytest.mark.slow
def test_a_run_under_a_mask(house):
    """What it says is what its weights say, counted here, and what the grid's run of the same seed said."""
    (mask,) = house.glob("runs/**/*_75_*.safetensors")
    call(house, f"brightness.py --model dino-mini --mask {mask} --seed 0 --accelerator cpu --output_dir out")
    found = json.loads((house / "out" / "results.json").read_text())["metrics"]["close"]
    grid = [json.loads(file.read_text()) for file in house.glob("runs/experiments/brightness*/run/results.json")]
    assert [run["metrics"]["close"] for run in grid if run["run"]["mask"]] == [found]

    weights = house / "out" / "last.safetensors"
    model = load_task_model("dino-mini", "image_classification", weights=weights, overrides={"classes": 1})
    settings = yaml.safe_load((house / "configs" / "dino-mini" / "brightness.yaml").read_text())
    images = ImagesToClassify(parse(LabelledSet, settings["test"], "test"), model.image_shape)
    pixels = torch.stack([images[i][0] for i in range(len(images))])
    with torch.no_grad():
        off = (model.logits(pixels)[:, 0] - pixels.mean(dim=(1, 2, 3))).abs()
    assert found == pytest.approx(100 * (off < 0.1).double().mean().item())
    kept = Mask.load(mask).fitted(model)
    assert all(not layer.weight[~kept[name]].any() for name, layer in model.prunable_layers().items())


@pytest.mark.slow
def test_a_reader_calibrates(house):
    """The mask is that of a known reader's batches, negated here."""
    call(house, "prune.py --model dino-mini --config negatives.yaml --seed 3 --num_workers 0 --output_dir masks")
    (found,) = house.glob("masks/**/*_75_*.safetensors")
    settings = yaml.safe_load((house / "negatives.yaml").read_text())["sides"]["general"]
    model = load_model("dino-mini")
    reader = Classification(
        parse(Classification.Config, settings | {"reader": "classification"}, "side"), model.image_shape
    )
    batches = [pair["general"] for pair in CalibrationBatches({"general": reader}, 8, 3, limit=2)]
    wanted = prune(model, [{"general": b | {"image": -b["image"]}} for b in batches], "wanda", (0.75,), seed=3)[0.75]
    mask = Mask.load(found)
    assert all(torch.equal(mask[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_the_report_knows_its_metric(house):
    page = (house / "results" / "grid" / "report" / "index.html").read_text()
    assert "brightness" in page and "close" in page
