"""--evaluate: the numbers of weights without training them, on the split that is asked for."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import training.finetuning
from tests.training.small_classification import options as classify
from tests.training.small_classification import small_config
from tests.training.small_finetuning import options, write_config


def found(folder):
    items = folder / "items.json"
    return json.loads((folder / "results.json").read_text()), json.loads(items.read_text()) if items.exists() else None


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """Task -> its configuration and the folder of a short run under no mask, made when it is first asked for."""
    made = {}

    def of(task, run):
        if task not in made:
            root = tmp_path_factory.mktemp(task)
            config = write_config(root / "config.yaml", world, task, short_epoch=2)
            done = run(*options(task, config, root / "run", "--dense"))
            assert done.returncode == 0, done.stderr
            made[task] = config, root / "run"
        return made[task]

    return of


@pytest.mark.parametrize(("task", "weights"), [("retrieval", "best"), ("captioning", "last"), ("vqa", "last")])
def test_a_runs_weights_give_its_test_numbers_again(task, weights, trained, run, tmp_path):
    config, folder = trained(task, run)
    done = run(*options(task, config, tmp_path / "out", "--evaluate", "-pre", folder / f"{weights}.safetensors"))
    assert done.returncode == 0, done.stderr
    (before, items), (after, again) = found(folder), found(tmp_path / "out")
    assert after["metrics"] == before["metrics"]
    assert again == items
    assert (tmp_path / "out" / "samples.png").stat().st_size > 1000


@pytest.mark.parametrize("task", ["retrieval", "captioning", "vqa"])
def test_the_validation_split_has_its_own_items(task, trained, run, tmp_path):
    """As many as it has, and their means are its numbers."""
    config, folder = trained(task, run)
    weights = ("-pre", folder / "last.safetensors")
    done = run(*options(task, config, tmp_path / "out", "--evaluate", "--split", "val", *weights))
    assert done.returncode == 0, done.stderr
    results, items = found(tmp_path / "out")
    assert results["run"]["evaluate"] == "val"
    for group in items["groups"].values() if items else ():  # captions are not scored here
        for metric, scores in group["scores"].items():
            value = results["metrics"]
            for key in metric.split(" ") if metric.split(" ")[0] == "itc" else [metric]:
                value = value[key]
            assert 100 * sum(scores) / len(scores) == pytest.approx(value, abs=0.01)
    assert (tmp_path / "out" / "samples.png").stat().st_size > 1000


class WithTeacher(nn.Module):
    """An objective with a loss beside it, which is zero here."""

    def __init__(self, objective):
        super().__init__()
        self.objective = objective

    def forward(self, batch, **options):
        losses = self.objective(batch, **options)
        return losses | {"teacher": 0 * sum(losses.values())}


def test_an_objective_may_be_wrapped(run, tmp_path, monkeypatch):
    """Its losses are logged and added; evaluation and files are as without."""
    config = small_config(tmp_path, short_epoch=2)
    done = run(*classify(config, tmp_path / "plain"))
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(training.finetuning, "with_teacher", lambda run, objective: WithTeacher(objective))
    done = run(*classify(config, tmp_path / "wrapped"))
    assert done.returncode == 0, done.stderr
    assert '"teacher": 0.0' in (tmp_path / "wrapped" / "log.jsonl").read_text()
    plain, wrapped = (load_file(tmp_path / name / "last.safetensors") for name in ("plain", "wrapped"))
    assert all(torch.equal(tensor, wrapped[name]) for name, tensor in plain.items())
    assert found(tmp_path / "plain")[0]["metrics"] == found(tmp_path / "wrapped")[0]["metrics"]


def test_splits_that_there_are_not(run, tmp_path):
    config = small_config(tmp_path)
    done = run(*classify(config, tmp_path / "out", "--evaluate", "--split", "val"))
    assert done.returncode == 2
    assert "image_classification has no validation split, its configuration names test data only" in done.stderr
    done = run(*classify(config, tmp_path / "out", "--split", "val"))
    assert done.returncode == 2
    assert "--split val is for --evaluate: add --evaluate, or leave it out" in done.stderr
    assert not (tmp_path / "out").exists()
