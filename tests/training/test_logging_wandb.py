"""Weights & Biases without a network: what lies in the folder, who is refused, and that nothing ends the training."""

import time

import pytest

import training.logging_wandb
from console.errors import InputError
from tests.training.toy import one_process
from tests.training.wandb_file import offline_runs
from training.logging_wandb import ID_FILE, WandbLog, flat, start_wandb

CONFIG = {"task": "vqa", "seed": 3, "config": {"recipe": {"lr": 0.05}}, "mask": None}
RESULTS = {
    "metrics": {"accuracy": 61.5, "itc": {"r_mean": 12.25}},
    "epoch": 2,
    "run": CONFIG,
    "kept": {"after_training": {"all": {"kept": 5, "of": 20, "share": 0.25}}},
    "seconds": {"training": 3.5},
    "machine": {"device": "a processor", "processes": 1},
}


@pytest.fixture(autouse=True)
def nobody(monkeypatch, tmp_path):
    """A user without a login, whose session ends with the test."""
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.chdir(home)
    wandb.teardown()
    yield
    wandb.teardown()


def start(folder, wanted=True, offline=True, name=None):
    return start_wandb(one_process(), folder, wanted, offline, name, CONFIG)


def test_an_offline_run_resumes_under_its_id(tmp_path):
    folder = tmp_path / "my-run"
    log = start(folder)
    log.training({"step": 50, "lr": 0.05, "itc": 2.5})
    log.epoch(1, {"r_mean": 40.5, "itc": {"r_mean": 30.25}, "left_out": ["a list"]}, 60)
    log.close(failed=True)  # stopped half-way
    again = start(folder, name="second sitting")
    again.training({"step": 100, "lr": 0.01, "itc": 1.5})
    again.epoch(2, {"r_mean": 50.5}, 120)
    again.results(RESULTS)
    again.close()
    import wandb

    wandb.teardown()  # its service may still be writing when `finish` returns
    first, second = offline_runs(folder)
    assert first.id == second.id == (folder / ID_FILE).read_text().strip()
    assert (first.name, second.name) == ("my-run", "second sitting")
    assert first.config | CONFIG == first.config
    rows = [{key: value for key, value in row.items() if not key.startswith("_t")} for row in first.rows]
    assert {"_step": 50, "train/lr": 0.05, "train/itc": 2.5}.items() <= rows[0].items()
    assert {"_step": 60, "epoch": 1, "val/r_mean": 40.5, "val/itc/r_mean": 30.25}.items() <= rows[1].items()
    assert [row["_step"] for row in second.rows] == [100, 120]
    assert second.summary["test/accuracy"] == 61.5
    assert second.summary["test/itc/r_mean"] == 12.25
    assert second.summary["kept/after_training/all/share"] == 0.25
    assert second.summary["seconds/training"] == 3.5
    assert (first.exit_code, second.exit_code) == (1, 0)


def test_nothing_is_started_unless_asked_for(tmp_path, capsys):
    log = start(tmp_path / "run", wanted=False, offline=False, name="a name")
    log.training({"step": 1, "lr": 0.1})
    log.results(RESULTS)
    log.close()
    assert not (tmp_path / "run").exists()
    assert "add --wandb" in capsys.readouterr().err


def test_without_a_login(tmp_path):
    began = time.monotonic()
    with pytest.raises(InputError, match=r"--wandb finds no login .*wandb login.*--wdb_offline") as caught:
        start(tmp_path, offline=False)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 60
    assert not (tmp_path / ID_FILE).exists(), "nothing is left of a run that did not start"


def test_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(training.logging_wandb, "START_SECONDS", 2.0)
    with pytest.raises(InputError, match=r"Weights & Biases cannot be started \(.*--wdb_offline") as caught:
        start(tmp_path, offline=False)
    assert "\n" not in str(caught.value)


def test_a_service_error_is_reported_once(capsys):
    class Broken:
        calls = 0

        def log(self, *_, **__):
            self.calls += 1
            raise BrokenPipeError("the service is gone.\nmore of it")

    run = Broken()
    log = WandbLog(run)
    log.training({"step": 1, "lr": 0.1})
    log.epoch(1, {"r_mean": 1.0}, 2)
    log.results(RESULTS)
    log.close()
    assert run.calls == 1
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("Weights & Biases failed (the service is gone); the run continues without it") == 1


def test_names_of_nested_numbers():
    assert flat({"a": {"b": 1, "c": {"d": "x", "e": None}}, "f": [1, 2], "g": 0.5}) == {
        "a/b": 1,
        "a/c/d": "x",
        "g": 0.5,
    }
