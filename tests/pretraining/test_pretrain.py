"""pretrain.py from end to end: what it exports, whatever happens to it on the way."""

import dataclasses
import random
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from configs.schema import parse
from models import load_model
from models.wrap import wrap
from pretraining.objectives import MaskedText
from pretraining.stages import PretrainConfig, save_weights, stage_data
from tests.conftest import started
from tests.training.small_run import ONE_THREAD, TOGETHER, call, options, small_config, untrained, write_config
from tests.training.toy import one_process
from training.loop import Loop, fit

EXPORTED = "xvlm-mini.safetensors"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return small_config(tmp_path_factory.mktemp("pretrain"))


@pytest.fixture(scope="module")
def config(small, tmp_path_factory):
    return write_config(tmp_path_factory.mktemp("config") / "pretrain.yaml", small)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The output of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        call(monkeypatch, *options(config, out))
    return out


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files_of_a_run(whole):
    stages = ("1-vision", "2-text", TOGETHER)
    expected = {f"{stage}{end}" for stage in stages for end in (".safetensors", "/snapshot.pt", "/log.jsonl")}
    assert files(whole) == expected | {EXPORTED}


def test_exported_weights_are_the_last_stage(whole):
    exported, last = load_file(whole / EXPORTED), load_file(whole / f"{TOGETHER}.safetensors")
    assert exported.keys() == last.keys()
    assert {tensor.dtype for tensor in exported.values()} == {torch.float16}
    assert {tensor.dtype for tensor in last.values()} == {torch.float32}
    assert all(torch.equal(exported[name], last[name].half()) for name in exported)
    assert (whole / EXPORTED).stat().st_size < 4e6  # what the repository can carry


def test_exported_weights_load(whole):
    model = load_model("xvlm-mini", weights=whole / EXPORTED)
    exported = load_file(whole / EXPORTED)
    state = model.state_dict()
    assert not model.load_report.fresh
    assert all(
        state[name].dtype == torch.float32 and torch.equal(state[name], exported[name].float()) for name in exported
    )
    words = "text_encoder.bert.embeddings.word_embeddings.weight"
    assert set(state) - set(exported) <= {words, "text_encoder.cls.predictions.decoder.weight"}  # one tensor, kept once
    general = model.example(2)["general"]
    assert all(loss.isfinite() for loss in model.losses(general).values())


def test_every_stage_trains_its_part(whole):
    states = [
        untrained().state_dict(),
        *(load_file(whole / f"{s}.safetensors") for s in ("1-vision", "2-text", TOGETHER)),
    ]

    def changed(before, after, part, but="nothing"):
        names = [name for name in after if name.startswith(part) and but not in name]
        assert names
        return sum(not torch.equal(before[name], after[name]) for name in names) / len(names)

    start, vision, text, together = states
    assert changed(start, vision, "vision_encoder.") > 0.9
    assert changed(start, vision, "text_encoder.") == 0
    assert changed(vision, text, "vision_encoder.") == 0
    assert changed(vision, text, "text_encoder.bert", but="crossattention") > 0.9
    assert changed(vision, text, "itm_head.") == 0
    for part in ("vision_encoder.", "text_encoder.", "itm_head.", "bbox_head.", "vision_proj", "temp"):
        assert changed(text, together, part) > 0.9


def test_a_finished_run_is_not_run_again(config, whole, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in whole.glob("*/*")}
    exported = (whole / EXPORTED).read_bytes()
    (whole / EXPORTED).unlink()
    call(monkeypatch, *options(config, whole))
    assert (whole / EXPORTED).read_bytes() == exported
    assert {path: path.stat().st_mtime_ns for path in whole.glob("*/*")} == before


def test_stages_do_not_depend_on_finished_ones(small, tmp_path, monkeypatch):
    """The second stage has fresh heads of its own: they must be the same in a process that did not run the first."""
    twice = small | {"stages": [small["stages"][0] | {"name": name, "steps": 2} for name in ("one", "two")]}
    config = write_config(tmp_path / "c.yaml", twice)
    call(monkeypatch, *options(config, tmp_path / "out"))
    exported = (tmp_path / "out" / EXPORTED).read_bytes()
    for path in (tmp_path / "out").glob("2-two*"):  # as if killed right after the first stage
        path.unlink() if path.is_file() else [file.unlink() for file in path.iterdir()]
    torch.manual_seed(123)
    call(monkeypatch, *options(config, tmp_path / "out"))
    assert (tmp_path / "out" / EXPORTED).read_bytes() == exported


def test_another_seed_gives_other_weights(small, whole, tmp_path, monkeypatch):
    config = write_config(tmp_path / "c.yaml", small | {"stages": small["stages"][:1]})
    for seed in ("0", "1"):
        call(monkeypatch, *options(config, tmp_path / seed, "--seed", seed))
    first, other = (load_file(tmp_path / seed / "1-vision.safetensors") for seed in ("0", "1"))
    undisturbed = load_file(whole / "1-vision.safetensors")
    assert all(torch.equal(first[name], undisturbed[name]) for name in first)
    assert not torch.equal(first["vision_encoder.class_embedding"], other["vision_encoder.class_embedding"])


def struck(number, stage, step, moment, config, out, cwd):
    """Run pretrain.py up to a moment, strike it with a signal there; returns its exit code and what it said."""
    words = ["-m", "tests.training.pausing_run", stage, step, moment, *options(config, out, "--snapshot_seconds", "0")]
    process, said = started(*words, cwd=cwd, **ONE_THREAD)
    try:
        deadline = time.monotonic() + 300
        while not (cwd / "paused").exists():
            assert process.poll() is None, said()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (cwd / "paused").unlink()
        process.send_signal(number)
        return process.wait(300), said()[1]
    finally:
        process.send_signal(signal.SIGKILL)


def saved_step(out, stage):
    return torch.load(out / stage / "snapshot.pt", weights_only=True)["step"]


@pytest.mark.slow
def test_stopped_and_killed_runs_end_the_same(config, whole, tmp_path, monkeypatch):
    """SIGTERM in the first stage, SIGKILL in the third, each at a random step; then to the end."""
    out, moments = tmp_path / "out", ("before", "during", "after")
    first, second = random.randint(1, 3), random.randint(2, 5)
    when_first, when_second = random.choice(moments), random.choice(moments)
    print(f"stopped {when_first} saving step {first} of vision, killed {when_second} saving step {second} of together")

    code, said = struck(signal.SIGTERM, "1-vision", first, when_first, config, out, tmp_path)
    assert code == 143, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert "1-vision/snapshot.pt" in files(out) <= {"1-vision/snapshot.pt", "1-vision/log.jsonl"}
    assert saved_step(out, "1-vision") == first + 1  # the step in hand is finished and saved

    code, said = struck(signal.SIGKILL, TOGETHER, second, when_second, config, out, tmp_path)
    assert code == -signal.SIGKILL, said
    assert saved_step(out, TOGETHER) == (second if when_second == "after" else second - 1)
    assert not (out / EXPORTED).exists()

    call(monkeypatch, *options(config, out))
    assert (out / EXPORTED).read_bytes() == (whole / EXPORTED).read_bytes()
    assert files(out) == files(whole), "nothing half written stays behind"


def test_a_clip_keeps_its_tower_and_resumes(small, tmp_path, monkeypatch):
    """What a stage left is read again, as of models that are wrapped."""
    files = small["stages"][1]["sides"]["texts"]["files"]
    side = {"reader": "pairs", "max_tokens": 28, "sep": True, "files": files}
    common = {"steps": 1, "batch_size": 4, "recipe": small["stages"][0]["recipe"], "sides": {"general": side}}
    stages = [{"name": name, "objective": name, **common} for name in ("locked_images", "together")]
    path = write_config(tmp_path / "clip.yaml", {"start": "xvlm-mini", "stages": stages})
    arguments = ["--model", "clip-mini", "--config", str(path), "--output_dir", str(tmp_path), "--accelerator", "cpu"]
    call(monkeypatch, *arguments)
    first, exported = (load_file(tmp_path / f"{name}.safetensors") for name in ("1-locked_images", "clip-mini"))
    tower = "vision_model.encoder.layers.0.mlp.fc1.weight"
    begun = load_model("xvlm-mini").state_dict()["vision_encoder.encoder.layers.0.mlp.fc1.weight"]
    assert torch.equal(first[tower], begun) and not torch.equal(exported[tower], begun.half())
    for left in ("2-together.safetensors", "2-together/snapshot.pt", "clip-mini.safetensors"):
        (tmp_path / left).unlink()
    call(monkeypatch, *arguments)
    again = load_file(tmp_path / "clip-mini.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in exported.items())


def test_tensors_without_elements_are_written(tmp_path):
    """They share no memory with one another, although their addresses are the same."""
    model = wrap(
        torch.nn.ModuleDict({"a": torch.nn.Linear(2, 0), "b": torch.nn.Linear(0, 2), "c": torch.nn.Linear(2, 2)})
    )
    model.module["d"] = model.module["c"]
    save_weights(tmp_path / "w.safetensors", model)
    found = load_file(tmp_path / "w.safetensors")
    assert set(found) == {f"{name}.{part}" for name in "abc" for part in ("weight", "bias")}


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_have_batches_of_one_size(small, processes):
    """Together they compare the features of all: a process with fewer pairs would stop the others."""
    stage, model = parse(PretrainConfig, small, "small").stages[2], untrained()
    n = len(stage_data(model, stage, processes=1, seed=0).sides["general"].reader.source)
    stage = dataclasses.replace(stage, batch_size=(n - 2) * processes)
    side = stage_data(model, stage, processes, seed=0).sides["general"]
    assert [len(side[t].used) for t in range(side.batches)] == ([n - 2, 2] if processes == 1 else [n - 2])


@pytest.mark.slow
def test_two_processes(small, run_process, tmp_path):
    """They export weights, and what they learn is what one process learns that accumulates their micro-batches."""
    recipe = {"lr": 1.0e-3, "eps": 1.0e-4, "clip": 0.5}  # a large eps: Adam would magnify rounding of tiny gradients
    config = write_config(
        tmp_path / "c.yaml", small | {"stages": small["stages"][1:]}, text={"recipe": recipe}, together={"steps": 2}
    )
    out = tmp_path / "out"
    done = run_process("pretrain.py", *options(config, out, "--devices", "2"), **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert f"weights: {out / EXPORTED}" in done.stderr.replace("\n", "")
    assert all(tensor.isfinite().all() for tensor in load_file(out / EXPORTED).values())
    load_model("xvlm-mini", weights=out / EXPORTED)

    stage = parse(PretrainConfig, small, "small").stages[1]
    recipe = dataclasses.replace(stage.recipe, lr=1e-3, eps=1e-4, clip=0.5, weight_decay=0.01, betas=[0.9, 0.999])
    recipe = dataclasses.replace(recipe, schedule=type(recipe.schedule)())
    model, start = untrained(), untrained().state_dict()
    texts = stage_data(model, stage, processes=2, seed=0).sides["texts"]

    def micro_batches(first):
        return ({"texts": texts[number].batch} for number in range(first, 2 * stage.steps))

    alone = Loop("alone", recipe, stage.steps, 0, tmp_path / "alone", {}, accumulate=2)
    fit(one_process(), MaskedText(model), micro_batches, alone)
    together, state = load_file(out / "1-text.safetensors"), model.state_dict()
    assert all(torch.allclose(together[name], state[name], atol=2e-6) for name in together)
    assert max((state[name] - start[name]).abs().max().item() for name in together) > 1e-3  # a thousand times that
