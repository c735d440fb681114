"""Finetuning runs that are interrupted, resumed, shared by two processes, or compare more pairs than one pass has."""

import json
import os
import shutil
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file

import training.loop
from console.interrupt import interrupt
from data.miniworld import ensure
from tests.training.small_finetuning import flowers, options, write_config

TWO_PASSES = {"batch_size": 4, "effective_batch": 8, "model": {"text": {"dropout": 0.1}}}
PATIENCE = 1200  # seconds, for machines that have other work


def outcome(folder):
    """What a run leaves: weights as bytes, numbers. Left out are seconds, and the log, whose means begin anew."""
    results = json.loads((folder / "results.json").read_text())
    results.pop("seconds")
    found = {"results": results, "epochs": (folder / "epochs.jsonl").read_text()}
    for kind in ("last", "best"):
        weights = load_file(folder / f"{kind}.safetensors")
        found |= {f"{kind} {name}": tensor.numpy().tobytes() for name, tensor in weights.items()}
    return found


@pytest.mark.parametrize("gather", [[], ["--gather_negatives"]])
def test_a_stop_saves_and_resumes_bit_for_bit(gather, world, mask, run, tmp_path, monkeypatch):
    """Ctrl-C and SIGTERM during the first of two steps, as real signals to this process."""
    config = write_config(tmp_path / "retrieval.yaml", world, "retrieval", **TWO_PASSES)

    def start(name):
        monkeypatch.setattr(interrupt, "requested", False)
        command = options("retrieval", config, tmp_path / name, "--mask", mask, "--debug", *gather)
        return run(*command, "--snapshot_seconds", "1e9")

    done = start("whole")
    assert done.returncode == 0, done.stderr
    whole = outcome(tmp_path / "whole_debug")
    set_rate = training.loop.set_rate
    for number in (signal.SIGINT, signal.SIGTERM):
        folder = tmp_path / f"{number.name}_debug"

        def strike(*arguments, number=number):
            os.kill(os.getpid(), number)
            return set_rate(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(training.loop, "set_rate", strike)
            done = start(number.name)
        assert done.returncode == 128 + number, done.stderr
        assert "interrupted" in done.stderr
        assert "Traceback" not in done.stderr
        assert {path.name for path in folder.iterdir()} == {"snapshot.pt", "config.yaml", "seconds.json"}
        assert torch.load(folder / "snapshot.pt", weights_only=True)["step"] == 1, "the step in hand is finished"
        done = start(number.name)
        assert done.returncode == 0, done.stderr
        assert outcome(folder) == whole


def test_a_snapshot_resumes_or_names_the_difference(world, run, tmp_path):
    config = write_config(tmp_path / "vqa.yaml", world, "vqa")
    first = run(*options("vqa", config, tmp_path / "first", "--dense", "--debug"))
    assert first.returncode == 0, first.stderr
    snapshot = tmp_path / "first_debug" / "snapshot.pt"
    again = options("vqa", config, tmp_path / "again", "--dense", "--debug", "--snapshot", snapshot)
    refused = run(*again, "--seed", "7")
    assert refused.returncode == 2
    assert f"{snapshot} belongs to another run (seed was 42, now it is 7)" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "again_debug" / "last.safetensors").exists()
    other = write_config(tmp_path / "other.yaml", world, "vqa", batch_size=4)
    refused = run(*options("vqa", other, tmp_path / "again", "--dense", "--debug", "--snapshot", snapshot))
    assert refused.returncode == 2
    assert "(config.batch_size was 8, now it is 4)" in refused.stderr
    assert run(*again).returncode == 0
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("first_debug", "again_debug"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_moved_snapshot_needs_the_best_epoch(world, run, tmp_path):
    """Of a finished run, whose epochs are not trained again: their numbers and the best weights come along."""
    config = write_config(tmp_path / "retrieval.yaml", world, "retrieval")
    first, again = tmp_path / "first_debug", tmp_path / "again_debug"
    done = run(*options("retrieval", config, tmp_path / "first", "--dense", "--debug"))
    assert done.returncode == 0, done.stderr
    command = options(
        "retrieval", config, tmp_path / "again", "--dense", "--debug", "--snapshot", first / "snapshot.pt"
    )
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert outcome(again) == outcome(first)
    shutil.rmtree(again)
    (first / "best.safetensors").unlink()
    refused = run(*command)
    assert refused.returncode == 2
    assert "best.safetensors is missing, the weights of epoch 1" in refused.stderr
    assert not again.exists()


def test_how_many_pairs_are_compared_is_said_once(world, run, tmp_path):
    said = "the contrastive loss compares 4 pairs, the effective batch has 8"
    config = write_config(tmp_path / "retrieval.yaml", world, "retrieval", **TWO_PASSES)
    alone = run(*options("retrieval", config, tmp_path / "alone", "--dense", "--debug"))
    assert alone.returncode == 0, alone.stderr
    assert alone.stderr.count(said) == 1
    together = run(*options("retrieval", config, tmp_path / "together", "--dense", "--debug", "--gather_negatives"))
    assert together.returncode == 0, together.stderr
    assert "the contrastive loss" not in together.stderr
    one, two = (json.loads((tmp_path / f"{n}_debug" / "results.json").read_text()) for n in ("alone", "together"))
    assert (one["run"]["config"]["gather_negatives"], two["run"]["config"]["gather_negatives"]) == (False, True)
    whole = write_config(tmp_path / "whole.yaml", world, "retrieval", batch_size=8)
    one_pass = run(*options("retrieval", whole, tmp_path / "whole", "--dense", "--debug"))
    assert one_pass.returncode == 0, one_pass.stderr
    assert "the contrastive loss" not in one_pass.stderr


def test_blip_compares_with_its_queue(world, run, tmp_path):
    config = write_config(tmp_path / "c.yaml", world, "retrieval", "blip-mini", batch_size=4, effective_batch=8)
    command = options("retrieval", config, tmp_path / "out", "--dense", "--debug", mini="blip-mini")
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "the contrastive loss" not in done.stderr
    refused = run(*command, "--gather_negatives")
    assert refused.returncode == 2
    assert "gather_negatives is for models that compare the pairs of a batch" in refused.stderr


def same_metrics(folder):
    """The runs `one` and `two` below `folder` found the same numbers and, but for rounding, the same weights."""
    folders = [folder / "one_debug", folder / "two_debug"]
    one, two = (json.loads((folder / "results.json").read_text())["metrics"] for folder in folders)
    assert one == two
    one, two = (load_file(folder / "last.safetensors") for folder in folders)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_processes_retrieve_like_one(world, mask, one_thread, run, run_ranks, tmp_path):
    """With the negatives of the whole effective batch, it does not matter who computes what."""
    config = write_config(tmp_path / "retrieval.yaml", world, "retrieval", **TWO_PASSES, gather_negatives=True)
    command = options("retrieval", config, tmp_path / "one", "--mask", mask, "--debug")
    assert run(*command, OMP_NUM_THREADS="1").returncode == 0
    (tmp_path / "first_debug").mkdir()
    command = options("retrieval", config, tmp_path / "first", "--mask", mask, "--debug", "--devices", 2)
    done = run_ranks(*command, "--incremental", timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(path.name for path in tmp_path.glob("first_*")) == ["first_debug", "first_debug_2"]
    (tmp_path / "first_debug_2").rename(tmp_path / "two_debug")
    same_metrics(tmp_path)


@pytest.mark.slow
def test_two_processes_classify_like_one(one_thread, run, run_ranks, tmp_path):
    world = ensure("flowers102", tmp_path / "world", workers=1, show=False, scale=0.02)
    settings = flowers(world)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings | {"batch_size": 4, "effective_batch": 8}))
    command = options("image_classification", config, tmp_path / "one", "--dense", "--debug", mini="dino-mini")
    assert run(*command, OMP_NUM_THREADS="1").returncode == 0
    command = options("image_classification", config, tmp_path / "two", "--dense", "--debug", mini="dino-mini")
    done = run_ranks(*command, "--devices", 2, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    same_metrics(tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [("devices", "0", 1), ("num_nodes", "0", 1), ("num_workers", "-1", 0), ("snapshot_seconds", "-1", 0)],
)
def test_numbers_that_mean_nothing(option, value, least, world, run, tmp_path):
    config = write_config(tmp_path / "vqa.yaml", world, "vqa")
    done = run(*options("vqa", config, tmp_path / "out", "--dense", f"--{option}", value))
    assert done.returncode == 2
    assert f"{option} must be at least {least}, not {value}" in done.stderr
    assert not (tmp_path / "out").exists()
