"""What a finetuning run leaves besides weights, and what a wrong start leaves as it was."""

import json
import signal
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from configs.schema import task_file
from data.retrieval import Gallery
from data.sources import Files
from models import load_model
from models.base import ImageShape
from pruners import prune
from sparsity.mask import Mask
from tasks.retrieval import capped
from tests.conftest import started
from tests.training.small_classification import options, small_config
from tests.training.small_finetuning import placed
from tests.training.wandb_file import offline_runs
from training.kept import count_kept


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_config(tmp_path_factory.mktemp("world"))


def mask_of(model, folder):
    path = folder / f"{model}_omp75.safetensors"
    prune(load_model(model), [], "omp", (0.75,))[0.75].save(path)
    return path


def contents(folder):
    """Name -> bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_run_records_itself_and_is_protected(config, run, tmp_path):
    mask, out = mask_of("dino-mini", tmp_path), tmp_path / "out"
    done = run(*options(config, out, "--mask", mask, "--wdb_offline", "--seed", "3"))
    assert done.returncode == 0, done.stderr
    found, last = results(out), load_file(out / "last.safetensors")
    fitted = Mask.load(mask)
    kept = sum(int((last[name] != 0).sum()) for name in fitted)
    assert kept == sum(map(fitted.kept, fitted))
    for moment in ("after_loading", "after_training"):
        assert found["kept"][moment]["all"]["kept"] == found["kept"][moment]["by_modality"]["vision"]["kept"] == kept
        assert found["kept"][moment]["all"]["of"] == sum(map(fitted.size, fitted))
    assert "after loading the mask" in done.stdout
    assert "after training" in done.stdout
    assert done.stdout.count(f"{kept:,} (25.00 %)") == 2 * (1 + 2), "two rows, in one column and then in two"
    assert found["mask_file"] == str(mask)
    assert found["run"]["mask"]["pruner"] == "omp"
    assert (found["run"]["seed"], found["machine"]["processes"]) == (3, 1)
    assert found["machine"]["device"]
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    seconds = found["seconds"]
    assert 0 < seconds["training"] + seconds["evaluation"] <= seconds["total"]
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert (settings["seed"], settings["epochs"]) == (3, 2)
    (logged,) = offline_runs(out)
    epochs = [json.loads(line)["top1"] for line in (out / "epochs.jsonl").read_text().splitlines()]
    assert [row["val/top1"] for row in logged.rows if "val/top1" in row] == epochs
    assert [row["train/classes"] for row in logged.rows if "train/classes" in row] == [
        json.loads(line)["classes"] for line in (out / "log.jsonl").read_text().splitlines()
    ]
    assert logged.name == "out"
    assert logged.summary["test/top1"] == found["metrics"]["top1"]

    # its own config.yaml is the same run again: done, and no second longer
    again = run(*options(out / "config.yaml", out, "--mask", mask))
    assert again.returncode == 0, again.stderr
    assert results(out) == found
    before = contents(out)
    for missing in ((), ("snapshot.pt",)):
        for name in missing:
            (out / name).unlink()
            del before[name]
        other = run(*options(config, out, "--mask", mask, "--seed", "4", "--wdb_offline"))
        assert other.returncode == 2
        assert "belongs to another run (seed was 3, now it is 4)" in other.stderr.replace("\n", " ")
        assert contents(out) == before


@pytest.mark.slow
def test_a_killed_run_resumes_clock_and_log(config, run, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # this process's would outlive the kill and keep the run's id
    command = options(config, tmp_path / "killed", "--wdb_offline", "--snapshot_seconds", "0")
    killed, _ = started(*command, OMP_NUM_THREADS="1")
    deadline = time.monotonic() + 250
    while not (tmp_path / "killed" / "epochs.jsonl").is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    took = json.loads((tmp_path / "killed" / "seconds.json").read_text())
    assert not (tmp_path / "killed" / "results.json").exists()
    for folder in ("killed", "whole"):  # the other one without any logging: it must not change a bit
        more = ["--wdb_offline"] if folder == "killed" else []
        done = run(*options(config, tmp_path / folder, *more, "--snapshot_seconds", "0"), OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / folder / "last.safetensors") for folder in ("whole", "killed"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    seconds = results(tmp_path / "killed")["seconds"]
    assert seconds["sittings"] == 2
    assert all(seconds[name] > took[name] for name in ("training", "evaluation", "total"))
    identity = (tmp_path / "killed" / "wandb_id.txt").read_text().strip()
    folders = list((tmp_path / "killed" / "wandb").glob(f"offline-run-*-{identity}"))
    assert len(folders) == 2, "both sittings log under one id"
    *_, second = offline_runs(tmp_path / "killed")
    assert second.id == identity
    assert second.summary["test/top1"] == results(tmp_path / "killed")["metrics"]["top1"]


def test_compiled_it_trains_under_the_mask(quick, config, run, tmp_path):
    """The same names in the files, and nearly the same losses."""
    mask = mask_of("dino-mini", tmp_path)
    for folder, more in (("plain", []), ("compiled", ["--compile"])):
        done = run(*options(config, tmp_path / folder, "--mask", mask, *more))
        assert done.returncode == 0, done.stderr
    plain, compiled = (load_file(tmp_path / folder / "last.safetensors") for folder in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    one, two = (json.loads((tmp_path / f / "log.jsonl").read_text().splitlines()[-1]) for f in ("plain", "compiled"))
    assert two["classes"] == pytest.approx(one["classes"], rel=1e-3)
    kept = Mask.load(mask)
    assert all((compiled[name][~kept[name]] == 0).all() for name in kept)
    assert quick
    refused = run(*options(config, tmp_path / "compiled", "--mask", mask))
    assert refused.returncode == 2
    assert "compile was True, now it is None" in refused.stderr.replace("\n", " ")


def test_a_mask_of_another_model(config, run, tmp_path):
    done = run(*options(config, tmp_path / "out", "--mask", mask_of("xvlm-mini", tmp_path)))
    assert done.returncode == 2
    assert "the mask belongs to another model: it lacks" in done.stderr
    assert contents(tmp_path / "out") == {}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--accelerator", "gpu", "--devices", "99"], "99 GPUs requested, but "),
        (["--accelerator", "mps", "--devices", "2"], "2 MPS devices requested"),
        (["--compile"], "--compile needs a C++ compiler, but there is no 'no-such-compiler' here"),
        (["--wandb"], "--wandb finds no login to Weights & Biases"),
        (["--precision", "16-mixed"], "precision 16-mixed needs a GPU"),
    ],
)
def test_what_this_machine_cannot_do(more, message, config, run, tmp_path):
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": "", "CXX": "no-such-compiler"}
    done = run(*options(config, tmp_path / "out", *more), **nobody)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "snapshot.pt").exists()


@pytest.mark.parametrize("task", ["retrieval", "captioning", "vqa"])
def test_a_missing_annotation_file(task, run, tmp_path):
    settings = placed(yaml.safe_load(task_file("xvlm-mini", task).read_text()), tmp_path / "nowhere")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    command = [f"{task}.py", "--model", "xvlm-mini", "--config", tmp_path / "config.yaml", "--dense"]
    done = run(*command, "--accelerator", "cpu", "--output_dir", tmp_path / "out")
    assert done.returncode == 2
    assert f"cannot read the annotations {tmp_path / 'nowhere'}" in done.stderr
    assert "no such file or folder" in done.stderr
    assert contents(tmp_path / "out") == {}


def test_a_gallery_smaller_than_k_test_is_told(tmp_path):
    records = [{"image": f"{i}.jpg", "caption": ["a cat", "a dog", "a cow"]} for i in range(4)]
    (tmp_path / "gallery.json").write_text(json.dumps(records))
    gallery = Gallery(Files(annotations=[str(tmp_path / "gallery.json")]), ImageShape(32, 8), 30)
    assert capped(4, "val", gallery) == ""
    assert capped(5, "val", gallery) == (
        "k_test is 5, but the val gallery has 4 images and 12 texts: all of them are ranked"
    )


def test_counts_agree_with_the_mask():
    model = load_model("xvlm-mini")
    mask = prune(model, [], "omp", (0.63,))[0.63]
    mask.apply(model)
    counted = {modality: count.kept for modality, count in count_kept(model).items()}
    assert counted == {m: sum(map(mask.kept, names)) for m, names in mask.layers_by_modality().items()}
    assert len(counted) == 3
