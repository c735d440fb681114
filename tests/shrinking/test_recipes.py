"""The recipes as commands: every step of them on a few samples, started again, and what the folder refuses."""

import json

import torch

from models import load_task_model

KEYS = ("epochs=1", "short_epoch=2", "samples=16")
FEW = ("--samples", "8", "--group", "256", "--repeats", "1", *(word for key in KEYS for word in ("--set", key)))


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
    done = run("shrink.py", "distil", "--model", "dino-mini", *words[3:], "-o", tmp_path / "c")
    assert done.returncode == 2
    assert "is no smaller model" in done.stderr
