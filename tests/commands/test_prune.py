"""prune.py from end to end on the mini model: files, table, resume, recut, and every kind of bad input."""

import csv
import hashlib
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruners import PRUNERS
from sparsity.mask import Mask
from tests.conftest import REPOSITORY, runner, started

QUICK = ("--num_batches", "2", "--batch_size", "8")


def prune(run, out, *arguments, **environment):
    return run("prune.py", "--model", "xvlm-mini", "--output_dir", str(out), *arguments, **environment)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One run of MULTIFLOW, as the README prints it but shorter."""
    out = tmp_path_factory.mktemp("masks")
    with pytest.MonkeyPatch.context() as patch:
        done = prune(runner(patch), out, "--pruner", "multiflow", *QUICK)
    assert done.returncode == 0, done.stderr
    return out, done


def test_files_of_a_run(made):
    out, _ = made
    folder = out / "multiflow"
    expected = {f"xvlm-mini_multiflow_{s}_seed42.safetensors" for s in (63, 75, 90)}
    expected |= {f"xvlm-mini_multiflow_seed42_{e}" for e in ("scores.safetensors", "calibration.json", "layers.png")}
    assert {path.name for path in folder.iterdir()} == expected | {"runtimes.csv"}
    for sparsity in (63, 75, 90):
        mask = Mask.load(folder / f"xvlm-mini_multiflow_{sparsity}_seed42.safetensors")
        assert mask.sparsity() == pytest.approx(sparsity / 100, abs=2e-6)
        assert mask.source["model"] == "xvlm-mini"
        weights = (REPOSITORY / "weights/xvlm-mini.safetensors").read_bytes()
        assert mask.source["weights"]["sha256"] == hashlib.sha256(weights).hexdigest()
        manifest = json.loads((folder / mask.source["calibration"]["manifest"]).read_text())
        assert manifest["hash"] == mask.source["calibration"]["hash"]
        assert manifest["sides"]["general"]["samples"] == 16
    with (folder / "runtimes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["sparsity"] for row in rows] == ["63", "75", "90"]
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_the_table_is_printed(made):
    _, done = made
    for text in ("63.000 %", "75.000 %", "90.000 %", "vision", "text", "fusion", "3 masks in"):
        assert text in done.stdout
    assert "calibrating" in done.stderr


def test_picture_is_a_picture(made):
    from PIL import Image

    with Image.open(made[0] / "multiflow" / "xvlm-mini_multiflow_seed42_layers.png") as image:
        assert image.width > 600


def test_workers_and_other_sparsities_change_nothing(made, run, tmp_path):
    done = prune(run, tmp_path, "-s", "75", "--num_workers", "2", *QUICK)
    assert done.returncode == 0, done.stderr
    name = "multiflow/xvlm-mini_multiflow_75_seed42.safetensors"
    assert Mask.load(tmp_path / name) == Mask.load(made[0] / name)


def test_another_seed_calibrates_on_other_samples(made, run, tmp_path):
    assert prune(run, tmp_path, "--seed", "7", *QUICK).returncode == 0
    manifests = [
        json.loads((folder / "multiflow" / f"xvlm-mini_multiflow_seed{seed}_calibration.json").read_text())
        for folder, seed in ((made[0], 42), (tmp_path, 7))
    ]
    assert manifests[0]["sides"]["general"]["used"] != manifests[1]["sides"]["general"]["used"]


@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_from_the_command_line(pruner, run, tmp_path):
    rounds = ("-e", "2") if pruner in ("itersnip", "chita", "chita++") else ()
    done = prune(
        run, tmp_path, "--pruner", pruner, "-s", "63", "90", *rounds, "--num_batches", "1", "--batch_size", "4"
    )
    assert done.returncode == 0, done.stderr
    for sparsity in (63, 90):
        mask = Mask.load(tmp_path / pruner / f"xvlm-mini_{pruner}_{sparsity}_seed42.safetensors")
        assert mask.sparsity() == pytest.approx(sparsity / 100, abs=5e-5)


def test_allocation_crosses_with_any_criterion(run, tmp_path):
    done = prune(run, tmp_path, "--pruner", "omp", "--allocation", "multimodal", "-s", "75")
    assert done.returncode == 0, done.stderr
    mask = Mask.load(tmp_path / "omp-multimodal" / "xvlm-mini_omp-multimodal_75_seed42.safetensors")
    assert all(share == pytest.approx(0.75, abs=1e-5) for share in mask.sparsity_by_modality().values())


def test_a_methods_own_allocation_is_not_named(run, tmp_path):
    done = prune(run, tmp_path, "--pruner", "omp", "--allocation", "global", "-s", "75")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["omp"]


def test_a_part_of_the_score_left_out(made, run, tmp_path):
    done = prune(run, tmp_path, "--no-reached", "-s", "75", *QUICK)
    assert done.returncode == 0, done.stderr
    name = "multiflow/xvlm-mini_multiflow_75_seed42.safetensors"
    part, whole = Mask.load(tmp_path / name.replace("multiflow", "multiflow-noreached")), Mask.load(made[0] / name)
    assert part.source["options"] == {"tokens": "all", "reached": False, "emitted": True}
    assert whole.source["options"] == {"tokens": "all", "reached": True, "emitted": True}
    assert part != whole
    scores = tmp_path / "multiflow-noreached" / "xvlm-mini_multiflow-noreached_seed42_scores.safetensors"
    assert run("prune.py", "--from_scores", str(scores), "-s", "40").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["multiflow-noreached"], "the whole score is left alone"


def test_replacing_masks_of_other_settings_warns(run, tmp_path):
    (tmp_path / "snip").mkdir()
    (tmp_path / "snip" / "runtimes.csv").write_text("model,of another version\nxvlm-mini,7\n")
    options = ("--pruner", "snip", "-s", "75", "--num_batches")
    for number, size, said in (
        ("2", "2", ""),
        ("2", "2", ""),
        ("3", "2", "num_batches: 2"),
        ("3", "4", "batch_size: 2"),
    ):
        done = prune(run, tmp_path, *options, number, "--batch_size", size)
        assert done.returncode == 0, done.stderr
        assert ("was made with other settings" in done.stderr) == bool(said)
        assert said in done.stderr
    done = prune(run, tmp_path, "--pruner", "snip", "-s", "63", "--batch_size", "4", "--num_batches", "4")
    assert "snip_75_seed42.safetensors was made with other settings" in (told := " ".join(done.stderr.split()))
    assert "it stays, but the scores, the picture and the calibration manifest next to it will be replaced" in told


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["multiflow", "snip", "itersnip", "tamt"])
def test_interrupted_and_resumed_gives_the_same_masks(pruner, run, tmp_path):
    """SIGINT in the middle: exit code 130, no mask, no half file; --resume gives the masks of an unbroken run."""
    rounds = ("-e", "2", "--num_batches", "3") if pruner == "itersnip" else ("--num_batches", "6")
    options = ("--pruner", pruner, "-s", "63", "90", *rounds, "--batch_size", "8")
    whole = prune(run, tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.stderr
    command = ["prune.py", "--model", "xvlm-mini", "--output_dir", tmp_path / "broken", *options, "--save_every", "0"]
    process, said = started(*command)
    folder = tmp_path / "broken" / pruner
    unfinished = folder / f"xvlm-mini_{pruner}_seed42_unfinished.safetensors"
    deadline = time.monotonic() + 120
    while not unfinished.exists():  # written after the first step through the data
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    assert "interrupted" in said()[1]
    left = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    assert left <= {unfinished.name}
    resumed = prune(run, tmp_path / "broken", *options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not unfinished.exists()
    for sparsity in (63, 90):
        name = f"{pruner}/xvlm-mini_{pruner}_{sparsity}_seed42.safetensors"
        assert Mask.load(tmp_path / "broken" / name) == Mask.load(tmp_path / "whole" / name)


def test_statistics_of_another_run_are_refused(run, tmp_path):
    from calibration.resume import Checkpoint

    file = tmp_path / "multiflow" / "xvlm-mini_multiflow_seed42_unfinished.safetensors"
    saved = Checkpoint(file, {"model": "another"}, every=0)
    saved.offer(lambda: ({"sums": torch.zeros(3)}, {"pairs": 1}))
    done = prune(run, tmp_path, "--resume", *QUICK)
    assert done.returncode == 2
    assert "was written by another run (model: 'another' then, 'xvlm-mini' now)" in done.stderr
    file.write_bytes(file.read_bytes()[:100])
    done = prune(run, tmp_path, "--resume", *QUICK)
    assert done.returncode == 2
    assert "is damaged and cannot be resumed: run without --resume" in done.stderr.replace("\n", " ")


def test_a_resume_with_other_data_settings_is_refused(run, tmp_path, monkeypatch):
    monkeypatch.setattr("calibration.resume.Checkpoint.finish", lambda checkpoint: None)  # as if interrupted
    options = ("-s", "75", "--num_batches", "1", "--batch_size", "2", "--save_every", "0")
    assert prune(run, tmp_path, *options).returncode == 0
    done = prune(run, tmp_path, *options, "--resume", "--set", "sides.general.max_words=5")
    assert done.returncode == 2
    assert "written by another run (sides.general.max_words: 40 then, 5 now)" in " ".join(done.stderr.split())


class TestBadInput:
    def refused(self, done, message):
        assert done.returncode == 2, done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        assert message in " ".join(done.stderr.split()), done.stderr

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--model", "xvml-mini"), "unknown model 'xvml-mini' (did you mean 'xvlm-mini'?)"),
            (("--pruner", "multiflw"), "unknown pruner 'multiflw' (did you mean 'multiflow'?)"),
            (("--allocation", "globale"), "unknown allocation 'globale' (did you mean 'global'?)"),
            (("-s", "0"), "sparsity 0 is not between 0 and 100"),
            (("-s", "100"), "sparsity 100 is not between 0 and 100"),
            (("-s", "abc"), "sparsity 'abc' is not a number"),
            (("-s", "0.63"), "give percents, for example 63 for 0.63"),
            (("-s", "63", "63.0"), "sparsity 63.0 is given twice"),
            (("-s", "nan"), "sparsity nan is not between"),
            (("--num_batches", "0"), "num_batches must be at least 1"),
            (("--batch_size", "0"), "batch size must be at least 1"),
            (("--batch_size", "100000000"), "a batch of 100000000 needs more than the"),
            (("--num_workers", "-1"), "num_workers must be at least 0"),
            (("--max_missing", "2"), "max_missing is a share of the images"),
            (("--precision", "8"), "unknown precision '8'"),
            (("--precision", "16"), "error: precision '16' is ambiguous"),
            (("--set", "precision=16"), "error: precision '16' is ambiguous"),
            (("--devices", "0"), "devices and num_nodes must be at least 1"),
            (("--config", "nowhere.yaml"), "nowhere.yaml: no such file"),
            (("--weights", "nowhere.pth"), "nowhere.pth does not exist"),
            (("--pruner", "itersnip", "--schedule", "cosine"), "unknown schedule 'cosine'"),
            (("--pruner", "itersnip", "--epochs", "0"), "--epochs must be at least 1"),
            (("--pruner", "tamt", "--lr", "-1"), "tamt's lr must be above 0, not -1.0"),
            (("--set", "methods.wanda.num_batches=ten"), "'num_batches' must be a whole number, not 'ten'"),
        ],
    )
    def test_command_line(self, arguments, message, run, tmp_path):
        self.refused(prune(run, tmp_path / "out", *arguments), message)
        assert not (tmp_path / "out").exists()

    def test_no_model(self, run):
        self.refused(run("prune.py"), "--model is missing: choose one of")

    def test_full_size_without_weights(self, run, tmp_path):
        done = run("prune.py", "--model", "xvlm", "--output_dir", str(tmp_path))
        self.refused(done, "weights/4m-xvlm-vit-bert.pth does not exist")
        assert "xvlm-mini" in done.stderr

    def test_weights_of_another_model(self, run, tmp_path):
        save_file({"visual_encoder.cls_token": torch.zeros(1)}, tmp_path / "blip.safetensors")
        self.refused(prune(run, tmp_path, "--weights", str(tmp_path / "blip.safetensors")), "does not fit XVLM")

    def test_nan_weights(self, run, tmp_path):
        state = load_file(REPOSITORY / "weights/xvlm-mini.safetensors")
        state["itm_head.0.bias"][0] = float("nan")
        save_file(state, tmp_path / "nan.safetensors")
        done = prune(run, tmp_path, "--weights", str(tmp_path / "nan.safetensors"))
        self.refused(done, "'itm_head.0.bias' has 1 value that is NaN or infinite")

    def test_folder_in_the_way(self, run, tmp_path):
        (tmp_path / "out").write_text("a file, not a folder")
        self.refused(prune(run, tmp_path / "out"), "cannot write")

    def test_folder_that_may_not_be_written(self, run):
        self.refused(prune(run, "/proc/nowhere"), "cannot write")

    def test_broken_configuration(self, run, tmp_path):
        text = (REPOSITORY / "configs/xvlm-mini/prune.yaml").read_text()
        (tmp_path / "a.yaml").write_text(text.replace("num_batches: 32", "num_batchs: 32"))
        done = prune(run, tmp_path, "--config", str(tmp_path / "a.yaml"))
        self.refused(done, "unknown key 'num_batchs' (did you mean 'num_batches'?)")

    @pytest.mark.parametrize(
        ("content", "message"),
        [("[]", "has no records"), ("[1", "not valid JSON"), ('[{"image": "a"}]', "has no field 'caption'")],
    )
    def test_broken_annotations(self, content, message, run, tmp_path):
        (tmp_path / "bad.json").write_text(content)
        text = (REPOSITORY / "configs/xvlm-mini/prune.yaml").read_text()
        text = text.replace("data/pretrain/cc3m_pretrain.json", str(tmp_path / "bad.json"))
        (tmp_path / "a.yaml").write_text(text)
        self.refused(prune(run, tmp_path, "--config", str(tmp_path / "a.yaml")), message)

    def test_a_pattern_at_another_sparsity_is_an_error(self, run, tmp_path):
        for allocation, message in (("2:4", "has a sparsity of exactly 50 %"), ("foo", "unknown allocation 'foo'")):
            done = prune(run, tmp_path / "out", "--pruner", "omp", "--allocation", allocation, "-s", "75")
            self.refused(done, message)
        assert not (tmp_path / "out").exists()

    def test_unusable_scratch_folder_and_accelerator(self, run, tmp_path):
        self.refused(prune(run, tmp_path, "--weights", str(tmp_path)), "is a folder without weights")
        self.refused(prune(run, tmp_path, "--pruner", "omp", "--accelerator", "tpu"), "unknown accelerator 'tpu'")
        self.refused(prune(run, tmp_path, "--seed", "-1"), "seed must be at least 0")

    def test_help_tells_a_methods_options(self, run):
        """Of the method that is named, from its own dataclass."""
        said = " ".join(run("prune.py", "--pruner", "tamt", "--help").stdout.split())
        assert "options of tamt: --lr LR" in said
        assert "which decays linearly over the batches (default: 5e-05)" in said
        assert "--lambda_" not in said

    def test_options_of_another_method(self, run, tmp_path):
        done = prune(run, tmp_path, "--pruner", "omp", "--lambda_", "1e-5", "-s", "75")
        self.refused(done, "--lambda_ has no effect for omp: it is an option of chita, chita++")
        self.refused(
            prune(run, tmp_path, "--no-reach", "-s", "75", "--pruner", "omp"), "unrecognized arguments: --no-reach"
        )


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    """The disk fills while the last mask is written: one sentence, earlier masks whole, no temporary file."""
    import errno

    import storage.tensors
    from console.errors import InputError

    mask = Mask({"w": torch.rand(64, 64) < 0.5})
    mask.save(tmp_path / "a.safetensors")

    def full(tensors, path, metadata):
        path.write_bytes(b"half a fi")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.tensors, "save_file", full)
    with pytest.raises(InputError, match="the disk is full"):
        mask.save(tmp_path / "b.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert Mask.load(tmp_path / "a.safetensors") == mask


@pytest.mark.parametrize(
    "command",
    [("prune.py",), ("pretrain.py",), ("-m", "data.miniworld"), ("-m", "evaluation.zero_shot"), ("masks.py",)],
)
def test_help_answers_at_once(command):
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *command, "--help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0
    assert time.perf_counter() - began < 2
    assert "usage" in done.stdout
