"""The recipes as commands: every step of them on a few samples, started again, and what the folder refuses."""

import json
import subprocess

import pytest
import torch

import retrieval
import shrink
import training.loop
from console.errors import InputError
from models import load_model, load_task_model
from models.parts import all_sets
from shrinking.choosing import Limits
from shrinking.errors import Errors
from shrinking.recipes import WIDTH, Steps, cut_by, start_recipe
from shrinking.weights import magnitudes
from tasks.loading import task_for

KEYS = ("epochs=1", "short_epoch=2", "samples=16")
FEW = ("--samples", "8", "--group", "256", "--repeats", "1", *(word for key in KEYS for word in ("--set", key)))


@pytest.mark.slow
def test_finetuning(run, tmp_path):
    """Two stages under the dense teacher; the second starts where the first ended; the same command only shows."""
    command = ("shrink.py", "finetuning", "--model", "dino-mini", "--keep", "0.5", *FEW, "-o", tmp_path / "a")
    done = run(*command)
    assert done.returncode == 0, done.stderr
    for word in ("dense", "width", "depth", "share kept", "parameters", "FLOPs, batch 32", "top1"):
        assert word in done.stdout
    small = tmp_path / "a" / "depth_distilled" / "small"
    plan = json.loads((small / "plan.json").read_text())
    assert plan["made_by"]["stage"] == "depth"
    kinds = {stay["kind"] for stay in plan["kept"].values()}
    assert kinds == {"heads", "neurons", "layers"}
    model = load_task_model(f"small:{small}", "image_classification")
    assert len(model.vit.encoder.layer) == 4
    last = load_task_model(
        f"small:{tmp_path / 'a' / 'depth'}",
        "image_classification",
        weights=tmp_path / "a" / "depth_distilled" / "last.safetensors",
    )
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.logits(image), last.logits(image))
    log = (tmp_path / "a" / "width_distilled" / "log.jsonl").read_text()
    assert "hidden" in log
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*") if path.is_file()}
    again = run(*command)
    assert again.returncode == 0, again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    done = run(*command, "--tower", "both")
    assert done.returncode == 2
    assert "has steps with another tower (vision, now both)" in done.stderr


def test_rounds(tmp_path):
    """Three tables, each of what the round before has left; in the end a half of what there was at first."""

    def measure(name, weights, file, shares):
        assert list(shares) == ["heads", "neurons"]
        model = load_model(name)
        Errors.of(model, magnitudes(model, 0), 64, {"model": name, "criterion": "magnitude", "seed": 0}).save(file)

    steps = Steps(lambda name, weights: load_model(name), measure, None)
    shares = dict.fromkeys(WIDTH, 0.5)  # channels, too, of which there are none
    name = cut_by(steps, "dino-mini", None, shares, Limits(), tmp_path / "a", 3)
    tables = [Errors.load(path) for path in sorted(tmp_path.glob("*_errors.safetensors"))]
    heads = [sum(len(errors) for key, errors in table.errors.items() if key.endswith("attention")) for table in tables]
    whole = sum(one.count for one in all_sets(load_model("dino-mini")) if one.kind == "heads")
    assert len(heads) == 3
    assert sorted(heads, reverse=True) == [whole, round(whole * 5 / 6), round(whole * 4 / 6)]
    assert sum(one.count for one in all_sets(load_model(name)) if one.kind == "heads") == whole / 2


def test_several_devices(monkeypatch, tmp_path):
    """Measuring and training are commands of their own, whose options they know."""
    words = ["finetuning", "--model", "xvlm-mini", "--task", "retrieval", "--devices", "2", "--set", "epochs=1"]
    words += ["--rounds", "2"]
    args = shrink.parse_args(words)
    done = []
    ended = [0, 0, 3]

    def noted(command):
        done.append(command[1:])
        return subprocess.CompletedProcess(command, ended.pop(0))

    monkeypatch.setattr(subprocess, "run", noted)
    steps = shrink.steps_of(args)
    steps.measure("xvlm-mini", None, tmp_path / "a", {"heads": 0.75, "neurons": 0.8})
    steps.train("xvlm-mini", tmp_path, ["--dense", "--teacher", "xvlm-mini", "--teacher_weights", "a"])
    measured = shrink.parse_args(done[0][1:])
    assert (measured.command, measured.devices, measured.output) == ("measure", 2, str(tmp_path / "a"))
    assert (measured.kinds, measured.tower, measured.keep) == (["heads", "neurons"], "vision", 0.75)
    trained = retrieval.parse_args(done[1][1:])
    assert retrieval.parse_args(["--model", "xvlm-mini"]).distil is None
    assert (trained.devices, trained.distil, trained.set) == (2, "mope", ["epochs=1"])
    with pytest.raises(SystemExit, match="3"):
        steps.measure("xvlm-mini", None, tmp_path / "a", {"layers": 0.75})


def test_distil(run, tmp_path):
    """One training of a folder under a teacher."""
    table, plan, options = tmp_path / "a_errors.safetensors", tmp_path / "a_plan.json", FEW[6:]
    task = ("--model", "dino-mini", "--task", "image_classification")
    dense = ("image_classification.py", "--model", "dino-mini", "--dense", *options, "--output_dir", tmp_path / "dense")
    assert run(*dense).returncode == 0
    weights = tmp_path / "dense" / "last.safetensors"
    task = (*task, "--weights", weights)
    for words in (
        ("measure", *task, "--criterion", "magnitude", "-o", table),
        ("plan", table, "--keep_heads", "0.5", "--keep", "1"),
        ("cut", *task, "--plan", plan, "--repeats", "1"),
    ):
        done = run("shrink.py", *words)
        assert done.returncode == 0, done.stderr
    words = ("distil", "--model", f"small:{tmp_path / 'a'}", "--teacher", "dino-mini", "--teacher_weights", weights)
    done = run("shrink.py", *words, *options, "--hidden", "0", "-o", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "hidden" not in (tmp_path / "b" / "log.jsonl").read_text()
    heads = json.loads((tmp_path / "b" / "small" / "plan.json").read_text())
    assert heads["made_by"] == {"teacher": "dino-mini"}
    (tmp_path / "b" / "results.json").unlink()  # refused before it is trained again
    done = run("shrink.py", *words, *options, "--hidden", "2", "-o", tmp_path / "b")
    assert done.returncode == 2 and not (tmp_path / "b" / "results.json").exists()
    assert "has steps with another hidden (0.0, now 2.0)" in done.stderr
    done = run("shrink.py", "distil", "--model", "dino-mini", *words[3:], "-o", tmp_path / "c")
    assert done.returncode == 2
    assert "is not a smaller model" in done.stderr


@pytest.mark.slow
def test_pretraining(run, tmp_path, monkeypatch):
    """Width and depth of both towers at once; killed while it learns and started again, it is the same model."""
    options = ("shrink.py", "pretraining", "--model", "xvlm-mini", "--criterion", "magnitude", *FEW[:6])
    options += ("--set", "samples=8", "--steps", "4")
    options += ("--keep_layers", "0.5")
    done = run(*options, "-o", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    for word in ("dense", "cut", "small", "share kept", "r_mean", "FLOPs, batch 32", "weights of text"):
        assert word in done.stdout
    plan = json.loads((tmp_path / "a" / "small" / "plan.json").read_text())
    kinds = {(name.split("_")[0], stay["kind"]) for name, stay in plan["kept"].items()}
    assert {("vision", "layers"), ("text", "layers"), ("vision", "heads"), ("text", "heads")} <= kinds
    rates, steps = training.loop.set_rate, iter(range(9))

    def killed(*args):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return rates(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "set_rate", killed)
        patch.setattr(training.loop.Loop, "snapshot_steps", 2)
        assert run(*options, "-o", tmp_path / "b").returncode != 0
    assert not (tmp_path / "b" / "small").exists()
    done = run(*options, "-o", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert next(steps) == 4
    files = [(tmp_path / name / "small" / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    assert files[0] != (tmp_path / "a" / "cut" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "resnet-mini"], "resnet-mini has no layers that can be removed in its vision tower"),
        (["--model", "dino-mini", "--seed", "-1"], "--seed is a whole number from 0"),
        (["--model", "xvlm-mini", "--task", "retrieval", "--tower", "fusion"], "give --score loss"),
        (["--model", "hf:ID"], "may be for retrieval or image_classification: name its task with --task"),
        (["--model", "dino-mini", "--devices", "0"], "devices must be at least 1"),
    ],
)
def test_refused_before_training(words, says, tmp_path):
    args = shrink.parse_args(["finetuning", *words, "-o", str(tmp_path / "a")])
    with pytest.raises(InputError, match=says):
        shrink.finetuning(args)
    assert not (tmp_path / "a").exists()


def test_the_task_of_a_librarys_model():
    assert task_for("timm:resnet18", None) == "image_classification"


def test_more_rounds_than_groups(tmp_path, capsys):
    """Rounds in which rounding leaves nothing to remove are passed over, the last one, too; one says so."""

    def measure(name, weights, file, shares):
        assert shares
        model = load_model(name)
        Errors.of(model, magnitudes(model, 0), 64, {"model": name, "criterion": "magnitude", "seed": 0}).save(file)

    steps = Steps(lambda name, weights: load_model(name), measure, None)
    cut_by(steps, "clip-mini", None, dict.fromkeys(WIDTH, 0.9), Limits(("vision",), (), 64), tmp_path / "a", 10)
    assert sum(p.numel() for p in load_model(f"small:{tmp_path / 'a'}").parameters()) < 1_660_929
    cut_by(steps, "dino-mini", None, dict.fromkeys(WIDTH, 0.99), Limits(), tmp_path / "b")
    assert "dino-mini: nothing is removed, since the numbers of groups are rounded" in capsys.readouterr().err


def test_damaged_settings(tmp_path):
    (tmp_path / "recipe.json").write_text("[1]")
    args = shrink.parse_args(["finetuning", "--model", "dino-mini", "-o", str(tmp_path)])
    with pytest.raises(InputError, match=r"recipe\.json is damaged"):
        start_recipe(args, tmp_path)
