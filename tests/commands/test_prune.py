"""prune.py from end to end on the mini model: files, table, resume, recut, and every kind of bad input."""

import csv
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pruners import PRUNERS
from pruners.mask import Mask
from tests.conftest import REPOSITORY

QUICK = ("--num_batches", "2", "--batch_size", "8")


def prune(run, out, *arguments, **environment):
    return run("prune.py", "--model", "xvlm-mini", "--output_dir", str(out), *arguments, **environment)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One run of MULTIFLOW, as the README prints it but shorter."""
    out = tmp_path_factory.mktemp("masks")
    command = [sys.executable, "prune.py", "--model", "xvlm-mini", "--pruner", "multiflow", "--output_dir", str(out)]
    done = subprocess.run([*command, *QUICK], cwd=REPOSITORY, capture_output=True, text=True)
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


def test_new_masks_from_scores_equal_a_run_of_their_own(made, run, tmp_path):
    """No data, no model: and bit for bit what pruning at that sparsity gives."""
    out = tmp_path / "copy"
    shutil.copytree(made[0], out)
    scores = out / "multiflow" / "xvlm-mini_multiflow_seed42_scores.safetensors"
    done = run("prune.py", "--from_scores", str(scores), "-s", "50", "62.5", MINIWORLD_DIR="/nowhere")
    assert done.returncode == 0, done.stderr
    direct = prune(run, tmp_path, "-s", "50", "62.5", *QUICK)
    assert direct.returncode == 0, direct.stderr
    for sparsity in ("50", "62.5"):
        name = f"multiflow/xvlm-mini_multiflow_{sparsity}_seed42.safetensors"
        assert Mask.load(out / name) == Mask.load(tmp_path / name)


def test_workers_batching_of_sparsities_and_repeats_change_nothing(made, run, tmp_path):
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
    done = prune(
        run, tmp_path, "--pruner", pruner, "-s", "63", "90", "-e", "2", "--num_batches", "1", "--batch_size", "4"
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


def test_a_part_of_the_score_left_out(made, run, tmp_path):
    done = prune(run, tmp_path, "--no-reached", "-s", "75", *QUICK)
    assert done.returncode == 0, done.stderr
    name = "multiflow/xvlm-mini_multiflow_75_seed42.safetensors"
    part, whole = Mask.load(tmp_path / name.replace("multiflow", "multiflow-noreached")), Mask.load(made[0] / name)
    assert part.source["options"] == {"reached": False, "emitted": True}
    assert whole.source["options"] == {"reached": True, "emitted": True}
    assert part != whole
    scores = tmp_path / "multiflow-noreached" / "xvlm-mini_multiflow-noreached_seed42_scores.safetensors"
    assert run("prune.py", "--from_scores", str(scores), "-s", "40").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["multiflow-noreached"], "the whole score is left alone"


def test_masks_of_other_settings_are_not_replaced_without_a_word(run, tmp_path):
    options = ("--pruner", "snip", "-s", "75", "--batch_size", "4", "--num_batches")
    for number, said in (("2", False), ("2", False), ("3", True)):
        done = prune(run, tmp_path, *options, number)
        assert done.returncode == 0, done.stderr
        assert ("made with other settings (num_batches: 2, now 3)" in done.stdout + done.stderr) == said
    done = prune(run, tmp_path, "--pruner", "snip", "-s", "63", "--batch_size", "4", "--num_batches", "4")
    assert "snip_75_seed42.safetensors was made with other settings" in (told := " ".join(done.stderr.split()))
    assert "it stays, but the scores, the picture and the record of calibration beside it will be replaced" in told


def test_new_masks_of_another_allocation_stay_in_its_folder(run, tmp_path):
    assert prune(run, tmp_path, "--pruner", "omp", "--allocation", "layer", "-s", "75").returncode == 0
    scores = tmp_path / "omp-layer" / "xvlm-mini_omp-layer_seed42_scores.safetensors"
    assert run("prune.py", "--from_scores", str(scores), "-s", "40").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["omp-layer"]


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["multiflow", "snip", "itersnip"])
def test_interrupted_and_resumed_gives_the_same_masks(pruner, run, tmp_path):
    """SIGINT in the middle: exit code 130, no mask, no half file; --resume gives the masks of an unbroken run."""
    options = ("--pruner", pruner, "-s", "63", "90", "-e", "2", "--batch_size", "8", "--num_batches", "6")
    whole = prune(run, tmp_path / "whole", *options)
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "prune.py", "--model", "xvlm-mini", "--output_dir", str(tmp_path / "broken"), *options]
    process = subprocess.Popen(
        [*command, "--save_every", "0"], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "broken" / pruner
    unfinished = folder / f"xvlm-mini_{pruner}_seed42_unfinished.safetensors"
    deadline = time.monotonic() + 120
    while not unfinished.exists():  # written after the first step through the data
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in error
    left = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    assert left <= {unfinished.name}
    resumed = prune(run, tmp_path / "broken", *options, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not unfinished.exists()
    for sparsity in (63, 90):
        name = f"{pruner}/xvlm-mini_{pruner}_{sparsity}_seed42.safetensors"
        assert Mask.load(tmp_path / "broken" / name) == Mask.load(tmp_path / "whole" / name)


def test_statistics_of_another_run_are_refused(run, tmp_path):
    from pruners.checkpoint import Checkpoint

    file = tmp_path / "multiflow" / "xvlm-mini_multiflow_seed42_unfinished.safetensors"
    saved = Checkpoint(file, {"model": "another"}, every=0)
    saved.offer(lambda: ({"sums": torch.zeros(3)}, {"pairs": 1}))
    done = prune(run, tmp_path, "--resume", *QUICK)
    assert done.returncode == 2
    assert "was written by another run (model: 'another' then, 'xvlm-mini' now)" in done.stderr
    file.write_bytes(file.read_bytes()[:100])
    done = prune(run, tmp_path, "--resume", *QUICK)
    assert done.returncode == 2
    assert "is damaged, so nothing can go on from it: run without --resume" in done.stderr.replace("\n", " ")


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
            (("-s", "abc"), "sparsity 'abc' is no number"),
            (("-s", "0.63"), "give percents, for example 63 for 0.63"),
            (("-s", "63", "63.0"), "sparsity 63.0 is given twice"),
            (("-s", "nan"), "sparsity nan is not between"),
            (("--num_batches", "0"), "num_batches must be at least 1"),
            (("--batch_size", "0"), "batch size must be at least 1"),
            (("--batch_size", "100000000"), "a batch of 100000000 takes more than the"),
            (("--num_workers", "-1"), "num_workers must be at least 0"),
            (("--max_missing", "2"), "max_missing is a share of the images"),
            (("--precision", "8"), "unknown precision '8'"),
            (("--devices", "0"), "devices and num_nodes must be at least 1"),
            (("--config", "nowhere.yaml"), "nowhere.yaml: no such file"),
            (("--weights", "nowhere.pth"), "nowhere.pth does not exist"),
            (("--pruner", "itersnip", "--schedule", "cosine"), "unknown schedule 'cosine'"),
            (("--pruner", "itersnip", "--epochs", "0"), "--epochs must be at least 1"),
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

    def test_scores_files(self, run, tmp_path):
        save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
        self.refused(run("prune.py", "--from_scores", str(tmp_path / "x.safetensors")), "is no scores file")
        self.refused(run("prune.py", "--from_scores", str(tmp_path / "y.safetensors")), "no such file")

    def test_options_that_saved_scores_leave_no_meaning(self, made, run, tmp_path):
        scores = made[0] / "multiflow" / "xvlm-mini_multiflow_seed42_scores.safetensors"
        done = run("prune.py", "--from_scores", str(scores), "-s", "40", "-p", "omp", "--output_dir", str(tmp_path))
        self.refused(done, "--pruner has no meaning with --from_scores")
        done = run("prune.py", "--from_scores", str(scores), "-s", "40", "--no-reached", "--output_dir", str(tmp_path))
        self.refused(done, "--reached has no meaning with --from_scores")
        assert not list(tmp_path.iterdir())

    def test_a_pattern_at_another_sparsity_leaves_no_folder(self, run, tmp_path):
        for allocation, message in (("2:4", "prunes 50 % and nothing else"), ("foo", "unknown allocation 'foo'")):
            done = prune(run, tmp_path / "out", "--pruner", "omp", "--allocation", allocation, "-s", "75")
            self.refused(done, message)
        assert not (tmp_path / "out").exists()

    def test_a_folder_for_weights_and_an_accelerator_nobody_offers(self, run, tmp_path):
        self.refused(prune(run, tmp_path, "--weights", str(tmp_path)), "is a folder without weights")
        self.refused(prune(run, tmp_path, "--pruner", "omp", "--accelerator", "tpu"), "unknown accelerator 'tpu'")
        self.refused(prune(run, tmp_path, "--seed", "-1"), "seed must be at least 0")

    @pytest.mark.parametrize("harm", ["short", "broken", "nameless"])
    def test_damaged_scores(self, harm, made, run, tmp_path):
        """Never a mask from scores that are not whole."""
        file = made[0] / "multiflow" / "xvlm-mini_multiflow_seed42_scores.safetensors"
        tensors, (about, form) = load_file(file), self.metadata(file)
        name = next(key for key in tensors if key.startswith("score."))
        if harm == "short":
            tensors[name] = tensors[name][:3].clone()
        elif harm == "nameless":
            about = about.replace('"model"', '"modle"')
        else:
            about = "{broken"
        save_file(tensors, tmp_path / "x.safetensors", {"format": form, "about": about})
        done = run("prune.py", "--from_scores", str(tmp_path / "x.safetensors"), "--output_dir", str(tmp_path / "out"))
        self.refused(done, "x.safetensors is damaged")
        assert not (tmp_path / "out").exists()

    def metadata(self, file):
        with safe_open(file, "pt") as opened:
            return opened.metadata()["about"], opened.metadata()["format"]

    def test_options_without_meaning_are_said(self, run, tmp_path):
        done = prune(run, tmp_path, "--pruner", "omp", "--lambda_", "1e-5", "-s", "75")
        assert done.returncode == 0
        assert "--lambda_ has no meaning for omp" in " ".join(done.stderr.split())


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
def test_help_answers_at_once(command, run_process):
    started = time.perf_counter()
    done = run_process(*command, "--help")
    assert done.returncode == 0
    assert time.perf_counter() - started < 2
    assert "usage" in done.stdout


class TestFromScores:
    """Where new masks go, what they are called, and what scores they are not cut from."""

    def scores(self, made, folder):
        folder.mkdir(parents=True)
        name = "xvlm-mini_multiflow_seed42_scores.safetensors"
        return shutil.copy(made[0] / "multiflow" / name, folder / name)

    def cut(self, run, scores, *arguments, **environment):
        done = run("prune.py", "--from_scores", str(scores), *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done

    def test_masks_stay_where_the_scores_are(self, made, run, tmp_path):
        """Moved from the folder of its run, or still there; never above."""
        moved, kept = self.scores(made, tmp_path / "a" / "downloads"), self.scores(made, tmp_path / "b" / "multiflow")
        for path in (moved, kept):
            self.cut(run, path, "-s", "50")
            assert (path.parent / "xvlm-mini_multiflow_50_seed42.safetensors").is_file()
        assert [path.name for path in (tmp_path / "a").iterdir()] == ["downloads"]
        assert [path.name for path in (tmp_path / "b").iterdir()] == ["multiflow"]
        self.cut(run, kept, "-s", "50", "--allocation", "layer")  # has a folder of its own, as in a run of its own
        assert (tmp_path / "b" / "multiflow-layer" / "xvlm-mini_multiflow-layer_50_seed42.safetensors").is_file()
        self.cut(run, moved, "-s", "50", "--allocation", "layer")
        assert (moved.parent / "xvlm-mini_multiflow-layer_50_seed42.safetensors").is_file()
        self.cut(run, moved, "-s", "50", "--output_dir", str(tmp_path / "c"))
        assert (tmp_path / "c" / "multiflow" / "xvlm-mini_multiflow_50_seed42.safetensors").is_file()

    def test_help_says_so(self, run):
        assert "with --from_scores, where the scores are" in " ".join(run("prune.py", "--help").stdout.split())

    def test_ninety_nine_sparsities(self, made, run, tmp_path):
        path = self.scores(made, tmp_path / "multiflow")
        self.cut(run, path, "-s", *map(str, range(1, 100)))
        self.cut(run, path, "-s", *map(str, range(1, 99)))
        left = [file.name for file in path.parent.iterdir()]
        assert len([name for name in left if name.endswith("_seed42.safetensors")]) == 99
        pictures = [name for name in left if name.endswith(".png")]
        assert len(pictures) == 2
        assert all("_layers_1-to-9" in name and len(name) < 80 for name in pictures)

    def test_names_that_are_too_long_come_first(self, made, run, tmp_path):
        path = self.scores(made, tmp_path / "multiflow")
        tensors = load_file(path)
        with safe_open(path, "pt") as opened:
            about = json.loads(opened.metadata()["about"])
            form = opened.metadata()["format"]
        about["source"]["model"] = "hf:" + "m" * 230
        save_file(tensors, path, {"format": form, "about": json.dumps(about)})
        done = run("prune.py", "--from_scores", str(path), "-s", "50", "75")
        assert done.returncode == 2
        assert "the name is too long for the file system" in done.stderr
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def refused(self, run, path, message):
        done = run("prune.py", "--from_scores", str(path), "-s", "50")
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert message in " ".join(done.stderr.split())
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_a_flipped_bit_anywhere(self, made, run, tmp_path):
        """In a score, in the name of a layer's modality, in the seed."""
        path = self.scores(made, tmp_path / "multiflow")
        whole = path.read_bytes()
        for place, bit, message in (
            (len(whole) - 3, 1, "is damaged: its scores are not what was written"),
            (whole.index(b'\\"vision') + 2, 1, "is damaged: its metadata are not what was written"),
            (whole.index(b'\\"seed\\": 42') + 10, 1, "is damaged: its metadata are not what was written"),
        ):
            broken = bytearray(whole)
            broken[place] ^= bit
            path.write_bytes(broken)
            self.refused(run, path, message)

    @pytest.mark.parametrize(("value", "kind"), [("nan", "score"), ("inf", "score"), ("-inf", "weight")])
    def test_old_files_without_a_fingerprint(self, value, kind, made, run, tmp_path):
        path = self.scores(made, tmp_path / "multiflow")
        tensors = load_file(path)
        with safe_open(path, "pt") as opened:
            metadata = {key: opened.metadata()[key] for key in ("format", "about")}
        save_file(tensors, path, metadata)
        self.cut(run, path, "-s", "50")
        name = "xvlm-mini_multiflow_50_seed42.safetensors"
        self.cut(run, made[0] / "multiflow" / path.name, "-s", "50", "--output_dir", str(tmp_path / "again"))
        assert Mask.load(path.parent / name) == Mask.load(tmp_path / "again" / "multiflow" / name)
        for file in path.parent.iterdir():
            file.unlink()
        key = next(key for key in tensors if key.startswith(kind))
        tensors[key].view(-1)[5] = float(value)
        save_file(tensors, path, metadata)
        self.refused(run, path, f"of the {kind}s of '{key.removeprefix(f'{kind}.')}', 1 is NaN or infinite")
