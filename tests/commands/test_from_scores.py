"""prune.py --from_scores: where new masks go, what they are called, and what scores none are cut from."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sparsity.mask import Mask
from tests.conftest import runner

QUICK = ("--num_batches", "2", "--batch_size", "8")
NAME = "xvlm-mini_multiflow_seed42_scores.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of one run of MULTIFLOW."""
    out = tmp_path_factory.mktemp("masks")
    with pytest.MonkeyPatch.context() as patch:
        done = runner(patch)("prune.py", "--model", "xvlm-mini", "--output_dir", str(out), "-s", "75", *QUICK)
    assert done.returncode == 0, done.stderr
    return out / "multiflow"


def scores(made, folder):
    """A copy of the scores in a folder of its own."""
    folder.mkdir(parents=True)
    return shutil.copy(made / NAME, folder / NAME)


def cut(run, path, *arguments, **environment):
    done = run("prune.py", "--from_scores", str(path), *arguments, **environment)
    assert done.returncode == 0, done.stderr


def refused(run, path, message, *arguments):
    """In one sentence, and nothing is left beside the scores."""
    done = run("prune.py", "--from_scores", str(path), "-s", "50", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert message in " ".join(done.stderr.split())
    assert [file.name for file in path.parent.iterdir()] == ([path.name] if path.is_file() else [])


def metadata(path):
    with safe_open(path, "pt") as opened:
        return {key: opened.metadata()[key] for key in ("format", "about")}


def test_masks_from_scores_equal_a_full_run(made, run, tmp_path):
    """No data, no model: and bit for bit what pruning at that sparsity gives."""
    out = tmp_path / "copy"
    cut(run, scores(made, out / "multiflow"), "-s", "50", "62.5", MINIWORLD_DIR="/nowhere")
    direct = run("prune.py", "--model", "xvlm-mini", "--output_dir", str(tmp_path), "-s", "50", "62.5", *QUICK)
    assert direct.returncode == 0, direct.stderr
    for sparsity in ("50", "62.5"):
        name = f"multiflow/xvlm-mini_multiflow_{sparsity}_seed42.safetensors"
        assert Mask.load(out / name) == Mask.load(tmp_path / name)


def test_another_allocation_stays_in_its_folder(run, tmp_path):
    options = ("--model", "xvlm-mini", "--pruner", "omp", "--allocation", "layer", "-s", "75")
    assert run("prune.py", *options, "--output_dir", str(tmp_path)).returncode == 0
    cut(run, tmp_path / "omp-layer" / "xvlm-mini_omp-layer_seed42_scores.safetensors", "-s", "40")
    assert [path.name for path in tmp_path.iterdir()] == ["omp-layer"]


def test_other_files(run, tmp_path):
    refused(run, tmp_path / "y.safetensors", "no such file")
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    refused(run, tmp_path / "x.safetensors", "is not a scores file")
    done = run("prune.py", "--from_scores", str(tmp_path))
    assert done.returncode == 2
    assert "it is a folder; name a file" in " ".join(done.stderr.split())


def test_options_that_saved_scores_leave_no_meaning(made, run, tmp_path):
    path = scores(made, tmp_path / "multiflow")
    refused(run, path, "--pruner has no effect with --from_scores", "-p", "omp")
    refused(run, path, "--no-reached has no effect for --from_scores", "--no-reached")
    refused(run, path, "has a sparsity of exactly 50 %", "75", "--allocation", "2:4")
    assert [folder.name for folder in tmp_path.iterdir()] == ["multiflow"]


@pytest.mark.parametrize("harm", ["short", "broken", "nameless"])
def test_scores_that_are_not_whole(harm, made, run, tmp_path):
    """Of a file without a fingerprint, as older ones are."""
    path = scores(made, tmp_path / "multiflow")
    tensors, about = load_file(path), metadata(path)
    name = next(key for key in tensors if key.startswith("score."))
    if harm == "short":
        tensors[name] = tensors[name][:3].clone()
    else:
        about["about"] = about["about"].replace('"model"', '"modle"') if harm == "nameless" else "{broken"
    save_file(tensors, path, about)
    refused(run, path, f"{NAME} is damaged")


def test_masks_stay_where_the_scores_are(made, run, tmp_path):
    """Moved from the folder of its run, or still there; never above."""
    moved, kept = scores(made, tmp_path / "a" / "downloads"), scores(made, tmp_path / "b" / "multiflow")
    for path in (moved, kept):
        cut(run, path, "-s", "50")
        assert (path.parent / "xvlm-mini_multiflow_50_seed42.safetensors").is_file()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["downloads"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["multiflow"]
    cut(run, kept, "-s", "50", "--allocation", "layer")  # has a folder of its own, as in a run of its own
    assert (tmp_path / "b" / "multiflow-layer" / "xvlm-mini_multiflow-layer_50_seed42.safetensors").is_file()
    cut(run, moved, "-s", "50", "--allocation", "layer")
    assert (moved.parent / "xvlm-mini_multiflow-layer_50_seed42.safetensors").is_file()
    cut(run, moved, "-s", "50", "--output_dir", str(tmp_path / "c"))
    assert (tmp_path / "c" / "multiflow" / "xvlm-mini_multiflow_50_seed42.safetensors").is_file()


def test_help_says_so(run):
    assert "with --from_scores, next to the scores" in " ".join(run("prune.py", "--help").stdout.split())


@pytest.mark.slow
def test_many_sparsities(made, run, tmp_path):
    path = scores(made, tmp_path / "multiflow")
    many = [*map(str, range(1, 100, 4))]
    cut(run, path, "-s", *many)
    cut(run, path, "-s", *many[:-1])
    left = [file.name for file in path.parent.iterdir()]
    assert len([name for name in left if name.endswith("_seed42.safetensors")]) == len(many)
    pictures = [name for name in left if name.endswith(".png")]
    assert len(pictures) == 2
    assert all("_layers_1-to-9" in name and len(name) < 80 for name in pictures)


def test_names_that_are_too_long_come_first(made, run, tmp_path):
    path = scores(made, tmp_path / "multiflow")
    tensors = load_file(path)
    about = metadata(path)
    source = json.loads(about["about"])
    source["source"]["model"] = "hf:" + "m" * 230
    save_file(tensors, path, about | {"about": json.dumps(source)})
    refused(run, path, "the name is too long for the file system")


def test_a_flipped_bit_anywhere(made, run, tmp_path):
    """In a score, in the name of a layer's modality, in the seed."""
    path = scores(made, tmp_path / "multiflow")
    whole = path.read_bytes()
    for place, bit, message in (
        (len(whole) - 3, 1, "is damaged: its scores have changed since they were written"),
        (whole.index(b'\\"vision') + 2, 1, "is damaged: its metadata have changed since they were written"),
        (whole.index(b'\\"seed\\": 42') + 10, 1, "is damaged: its metadata have changed since they were written"),
    ):
        broken = bytearray(whole)
        broken[place] ^= bit
        path.write_bytes(broken)
        refused(run, path, message)


@pytest.mark.parametrize(("value", "kind"), [("nan", "score"), ("inf", "score"), ("-inf", "weight")])
def test_old_files_without_a_fingerprint(value, kind, made, run, tmp_path):
    path = scores(made, tmp_path / "multiflow")
    tensors = load_file(path)
    about = metadata(path)
    save_file(tensors, path, about)
    cut(run, path, "-s", "50")
    name = "xvlm-mini_multiflow_50_seed42.safetensors"
    cut(run, made / NAME, "-s", "50", "--output_dir", str(tmp_path / "again"))
    assert Mask.load(path.parent / name) == Mask.load(tmp_path / "again" / "multiflow" / name)
    for file in path.parent.iterdir():
        file.unlink()
    key = next(key for key in tensors if key.startswith(kind))
    tensors[key].view(-1)[5] = float(value)
    save_file(tensors, path, about)
    refused(run, path, f"of the {kind}s of '{key.removeprefix(f'{kind}.')}', 1 is NaN or infinite")
