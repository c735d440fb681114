"""What a run says of itself: its configuration can be read again, its versions and its commit are true."""

import platform
import subprocess

import lightning
import pytest
import timm
import torch
import torchvision
import transformers
import yaml

from configs.schema import parse, read_yaml, task_file
from console.errors import InputError
from storage.atomic import write_json
from tasks.captioning import CaptioningConfig
from tasks.retrieval import RetrievalConfig
from tasks.vqa import VQAConfig, with_validation
from training.results import commit, device_name, metrics_line, refuse_finished, versions, write_settings

CONFIGS = {"retrieval": RetrievalConfig, "captioning": CaptioningConfig, "vqa": VQAConfig}


@pytest.mark.parametrize("model", ["xvlm-mini", "xvlm", "blip"])
@pytest.mark.parametrize("task", CONFIGS)
def test_the_settings_file_is_a_configuration(task, model, tmp_path):
    """Read again it is the same, but for what the command line changed."""
    config = parse(CONFIGS[task], read_yaml(task_file(model, task)), "shipped")
    if task == "vqa":
        config = with_validation(config)
    path = tmp_path / "config.yaml"
    write_settings(path, config, seed=7, precision="bf16-mixed")
    again = parse(CONFIGS[task], read_yaml(path), "written")
    assert (again.seed, again.precision) == (7, "bf16-mixed")
    write_settings(path, config)
    assert parse(CONFIGS[task], read_yaml(path), "written") == config


def test_versions_are_those_that_run():
    found = versions()
    assert found["python"] == platform.python_version()
    for library in (torch, torchvision, transformers, timm, lightning):
        assert found[library.__name__] == library.__version__.partition("+")[0] or found[library.__name__] == (
            library.__version__
        )


def git(folder, *words):
    who = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    return subprocess.run(
        ["git", "-C", folder, *who, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_and_changed_files(tmp_path):
    assert commit(tmp_path) is None, "no checkout"
    git(tmp_path, "init")
    assert commit(tmp_path) is None, "no commit yet"
    (tmp_path / "file.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "A file")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("not tracked\n")
    assert commit(tmp_path) == head
    (tmp_path / "file.py").write_text("a = 2\n")
    assert commit(tmp_path) == f"{head}-dirty"
    (tmp_path / "installed").mkdir()
    assert commit(tmp_path / "installed") is None, "inside of somebody else's checkout"


def test_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None


def test_a_device_has_a_name():
    assert len(device_name(torch.device("cpu"))) > 2


def test_the_results_of_another_run_stay(tmp_path):
    path = tmp_path / "results.json"
    refuse_finished(path, {"seed": 1})  # nothing there
    write_json(path, {"metrics": {}, "run": {"seed": 1, "config": {"lr": 0.1}}})
    refuse_finished(path, {"seed": 1, "config": {"lr": 0.1}, "compile": None})
    with pytest.raises(
        InputError, match=r"results\.json belongs to another run \(config\.lr was 0\.1, now it is 0\.2\)"
    ):
        refuse_finished(path, {"seed": 1, "config": {"lr": 0.2}})
    path.write_text("{")
    with pytest.raises(InputError, match=r"results\.json is not valid JSON"):
        refuse_finished(path, {"seed": 1})


def test_the_command_stands_above_the_settings(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["vqa.py", "--mask", "a mask\n.safetensors"])
    config = parse(VQAConfig, read_yaml(task_file("xvlm-mini", "vqa")), "shipped")
    write_settings(tmp_path / "config.yaml", config)
    text = (tmp_path / "config.yaml").read_text()
    assert "python vqa.py --mask 'a mask .safetensors'" in text.splitlines()[1]
    assert yaml.safe_load(text)["seed"] == 42


def test_metrics_in_one_line():
    found = {"r_mean": 80.3125, "itc": {"r_mean": 72.0}, "left_out": ["METEOR"], "note": "none"}
    assert metrics_line(found) == "r_mean 80.31, itc/r_mean 72"
