"""Finetuning scripts end to end on a mini world of some thirty pictures: dense, sparse, killed, in two processes."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data.miniworld import ensure
from sparsity.mask import Mask
from storage.lock import claim
from studies.metrics import flat
from tests.conftest import started
from tests.evaluation.items_means import means
from tests.training.small_finetuning import flowers, options, write_config

TASKS = ("retrieval", "captioning", "vqa")


@pytest.fixture
def config(world, tmp_path):
    def write(task, **changes):
        return write_config(tmp_path / f"{task}.yaml", world, task, **changes)

    return write


@pytest.mark.parametrize("task", TASKS)
def test_a_sparse_run(task, config, mask, run, tmp_path):
    done = run(*options(task, config(task), tmp_path / "out", "--mask", mask))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["metrics"] or task == "captioning"
    assert results["run"]["mask"]["pruner"] == "omp"
    assert (tmp_path / "out" / "samples.png").stat().st_size > 10_000
    if task == "captioning":  # these runs do not score
        assert not (tmp_path / "out" / "items.json").exists()
    else:
        found, metrics = means(tmp_path / "out" / "items.json"), flat(results["metrics"])
        groups = {
            kind: [f"{start}{label}_r{k}" for start in ("", "itc ") for k in (1, 5, 10)]
            for kind, label in (("text", "img"), ("image", "txt"))
        }
        assert {name: list(of) for name, of in found.items()} == (
            groups if task == "retrieval" else {"items": ["overall"]}
        )
        for metric, mean in (pair for of in found.values() for pair in of.items()):
            assert mean == pytest.approx(metrics[metric], abs=0.0051)
    epochs = [json.loads(line) for line in (tmp_path / "out" / "epochs.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in epochs] == [1, 2]
    if task == "retrieval":
        assert results["epoch"] == max(epochs, key=lambda line: line["r_mean"])["epoch"]
        assert (tmp_path / "out" / "best.safetensors").is_file()
    last = load_file(tmp_path / "out" / "last.safetensors")
    kept = Mask.load(mask)
    for name in ("vision_encoder.encoder.layers.0.mlp.fc1.weight", "vision_encoder.encoder.layers.3.mlp.fc2.weight"):
        assert (last[name][~kept[name]] == 0).all()
        assert (last[name][kept[name]] != 0).all()
    text = [name for name in last if name.endswith("encoder.layer.3.crossattention.self.key.weight")]
    own = kept["text_encoder.bert.encoder.layer.3.crossattention.self.key.weight"]
    assert (last[text[0]][~own] == 0).all()


@pytest.mark.parametrize("task", TASKS)
def test_half_precision_end_to_end(task, config, mask, run, tmp_path):
    command = options(task, config(task), tmp_path / "out", "--mask", mask, "--precision", "bf16-true", "--debug")
    done = run(*command, "--no_samples")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out_debug" / "samples.png").exists()
    last = load_file(tmp_path / "out_debug" / "last.safetensors")
    name = "vision_encoder.encoder.layers.0.mlp.fc1.weight"
    assert last[name].dtype == torch.bfloat16
    assert (last[name][~Mask.load(mask)[name]] == 0).all()


def test_missing_images_are_counted_first(config, run, tmp_path):
    settings = yaml.safe_load(config("vqa", epochs=1).read_text())
    (path,) = settings["train"]["files"]["annotations"]
    records = json.loads((Path(settings["train"]["files"]["root"]) / path).read_text())
    gone = [record | {"image": f"gone{number}.png"} for number, record in enumerate(records)]
    (tmp_path / "train.json").write_text(json.dumps([*gone, *records]))
    settings["train"]["files"]["annotations"] = [str(tmp_path / "train.json")]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    done = run(*options("vqa", tmp_path / "c.yaml", tmp_path / "out", "--dense"))
    assert done.returncode == 2
    there = len({record["image"] for record in records})
    told = " ".join(done.stderr.split())
    assert f"{len(gone)} of {len(gone) + there} training images are missing, more than 5% (first: " in told
    assert not (tmp_path / "out").exists()


def test_captions_are_looked_at_from_start_eval_on(config, run, tmp_path):
    path = config("captioning", epochs=2, start_eval=1, leave_out=["METEOR", "SPICE"])
    command = options("captioning", path, tmp_path / "out", "--dense")
    done = run(*(part for part in command if part != "--skip_eval"))
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in (tmp_path / "out" / "epochs.jsonl").read_text().splitlines())
    assert first == {"epoch": 1}
    assert "CIDEr" in second
    assert json.loads((tmp_path / "out" / "results.json").read_text())["epoch"] == 2
    shorter = run(*(part for part in command if part != "--skip_eval"), "--debug")  # one epoch
    assert shorter.returncode == 0, shorter.stderr
    other = run(*command)
    assert other.returncode == 2
    assert "(skip_eval was None, now it is True)" in " ".join(other.stderr.split())


@pytest.mark.parametrize(("task", "clip"), [("retrieval", None), ("vqa", 1.0), ("vqa", None)])
def test_a_rate_far_too_high_ends_in_one_sentence(task, clip, config, run, tmp_path):
    settings = yaml.safe_load(config(task, epochs=2, skip_val=True).read_text())
    settings["recipe"] |= {"lr": 1.0e30, "clip": clip}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    done = run(*options(task, tmp_path / "c.yaml", tmp_path / "out", "--dense"))
    assert done.returncode == 2, done.stderr
    assert "training has diverged: at step " in done.stderr
    assert not (tmp_path / "out" / "results.json").exists()


def test_classification(run, tmp_path):
    """The mini DINO's full class on 24 classes of two images each."""
    world = ensure("flowers102", tmp_path / "world", workers=1, show=False, scale=0.02)
    settings = flowers(world)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings | {"epochs": 1, "batch_size": 8}))
    out = tmp_path / "out"
    command = ["image_classification.py", "--model", "dino-mini", "--config", path, "--dense", "--output_dir", out]
    command += ["--accelerator", "cpu", "--pretraining_weights", "random"]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    results = json.loads((out / "results.json").read_text())
    assert 0 <= results["metrics"]["top1"] <= 100
    assert means(out / "items.json") == {"items": {"top1": pytest.approx(results["metrics"]["top1"], abs=0.0051)}}
    assert load_file(out / "last.safetensors")["classifier.weight"].shape == (24, 128)
    unknown = run(*command, "--dataset", "flower102")
    assert unknown.returncode == 2
    assert "unknown data set 'flower102' (did you mean 'flowers102'?)" in unknown.stderr


def test_a_short_epoch_and_few_samples(config, run, tmp_path):
    """Two epochs of three steps each, five questions of the test split answered, and `val` not looked at."""
    path = config("vqa", short_epoch=3, samples=5, skip_val=True)
    done = run(*options("vqa", path, tmp_path / "out", "--dense"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-1])["step"] == 6
    answers = json.loads((tmp_path / "out" / "result" / "test_vqa_result_epoch_last.json").read_text())
    assert len(answers) == 5
    assert [path.name for path in (tmp_path / "out" / "result").iterdir()] == ["test_vqa_result_epoch_last.json"]
    found = run(
        *options("retrieval", config("retrieval", epochs=1, samples=4, skip_val=True), tmp_path / "r", "--dense")
    )
    assert found.returncode == 0, found.stderr
    assert json.loads((tmp_path / "r" / "results.json").read_text())["epoch"] is None
    assert (tmp_path / "r" / "last.safetensors").is_file()
    assert not (tmp_path / "r" / "best.safetensors").exists()


def test_dense_goes_before_a_mask(config, mask, run, tmp_path):
    done = run(*options("retrieval", config("retrieval", epochs=1), tmp_path / "out", "--mask", mask, "--dense"))
    assert done.returncode == 0, done.stderr
    assert "the mask is not used" in done.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["run"]["mask"] is None


def test_a_finished_run_is_not_repeated(config, run, tmp_path):
    command = options("vqa", config("vqa", epochs=1), tmp_path / "out", "--dense")
    first = run(*command)
    assert first.returncode == 0, first.stderr
    weights = load_file(tmp_path / "out" / "last.safetensors")
    assert run(*command).returncode == 0
    assert all(torch.equal(weights[n], t) for n, t in load_file(tmp_path / "out" / "last.safetensors").items())
    other = run(*command, "--seed", "1")
    assert other.returncode == 2
    assert "belongs to another run (seed was 42, now it is 1)" in other.stderr
    numbered = run(*command, "--seed", "1", "--incremental")
    assert numbered.returncode == 0
    assert (tmp_path / "out_2" / "results.json").is_file()


@pytest.mark.parametrize(
    ("task", "section", "key"),
    [
        ("retrieval", "evaluation", "max_tokens"),
        ("retrieval", "train", "max_tokens"),
        ("captioning", "search", "max_length"),
        ("vqa", "train", "max_tokens"),
    ],
)
def test_texts_longer_than_the_model_reads(task, section, key, config, run, tmp_path):
    """Known before the first step, not after the last."""
    settings = yaml.safe_load(config(task).read_text())
    settings[section][key] = 300
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    done = run(*options(task, tmp_path / "c.yaml", tmp_path / "out", "--dense"))
    assert done.returncode == 2
    assert re.search(rf"{section}: {key} is 300, but the model has \d+ positions", done.stderr.replace("\n", " "))
    assert not (tmp_path / "out").exists()


def test_a_decoder_that_always_has_the_mask(config, run, tmp_path):
    path = config("vqa", mini="blip-mini")
    done = run(*options("vqa", path, tmp_path / "out", "--dense", "--inherit_mask", mini="blip-mini"))
    assert done.returncode == 2
    assert "blip-mini's is always pruned: leave it out" in " ".join(done.stderr.split())


def test_captions_use_the_training_prompt(config, run, tmp_path):
    done = run(*options("captioning", config("captioning", prompt="a photo of "), tmp_path / "out", "--dense"))
    assert done.returncode == 2
    assert "give the same" in done.stderr


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({}, [], "give the mask to train under with --mask FILE, --prune METHOD to prune while training, or --dense"),
        ({}, ["--mask", "nothing.safetensors"], "nothing.safetensors"),
        ({"effective_batch": 12}, ["--dense"], "an effective batch of 12 cannot be made of 1 process"),
        ({"epochs": 0}, ["--dense"], "epochs must be at least 1, not 0"),
        ({"short_epoch": 0}, ["--dense"], "short_epoch must be at least 1, not 0"),
        ({"k_test": 1000}, ["--dense"], "k_test asks for the best 1000"),
        ({"surprise": 1}, ["--dense"], "unknown key 'surprise'"),
        ({"batch_size": 100_000}, ["--dense"], "a batch of 100000 needs more than the "),
        ({}, ["--dense", "--snapshot", "gone.pt"], "there is no snapshot gone.pt"),
        ({}, ["--dense", "--precision", "16-mixed"], "precision 16-mixed needs a GPU"),
        ({}, ["--mask", "OTHER"], "the mask belongs to another model"),
        ({"test_answers": "OTHER"}, ["--dense"], "has no answer to"),
        ({"inference": "generate"}, ["--dense"], "this model only ranks answers"),
    ],
)
def test_bad_input(changes, more, message, config, run, tmp_path):
    """It is refused in words, and leaves no folder behind."""
    if "OTHER" in more:
        Mask({"other.weight": torch.ones(2, 2, dtype=torch.bool)}).save(tmp_path / "other.safetensors")
        more = ["--mask", tmp_path / "other.safetensors"]
    if "test_answers" in changes:
        people = [{"question_id": 1, "answer": ["red"] * 10}]
        (tmp_path / "other.json").write_text(json.dumps(people))
        changes = {"test_answers": str(tmp_path / "other.json")}
    done = run(*options("vqa", config("vqa", **changes), tmp_path / "runs" / "out", *more))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_second_run_in_the_same_folder_is_refused(config, run_process, tmp_path):
    out = tmp_path / "out"
    other = claim(out / "lock", "work")
    done = run_process(*options("vqa", config("vqa"), out, "--dense"))
    assert done.returncode == 2
    assert f"another run uses {out}: wait for its end, or choose" in done.stderr
    assert [path.name for path in out.iterdir()] == ["lock"]
    other.release()


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_weights(one_thread, config, mask, run, tmp_path):
    path = config("retrieval")

    def command(out):
        return options("retrieval", path, out, "--mask", mask, "--snapshot_seconds", "0")

    def start(out):
        return started(*command(out), OMP_NUM_THREADS="1")[0]

    assert run(*command(tmp_path / "whole")).returncode == 0
    killed = start(tmp_path / "killed")
    log = tmp_path / "killed" / "snapshot.pt"
    deadline = time.monotonic() + 200
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "results.json").exists()
    assert start(tmp_path / "killed").wait(300) == 0
    for name in ("last.safetensors", "best.safetensors"):
        one, two = (load_file(tmp_path / run / name) for run in ("whole", "killed"))
        assert all(torch.equal(one[key], two[key]) for key in one)
    one, two = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("whole", "killed"))
    assert (one.pop("seconds")["sittings"], two.pop("seconds")["sittings"]) == (1, 2)
    assert one == two
