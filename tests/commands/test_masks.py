"""masks.py from end to end on the mini model: reports, conversion, cutting, draws, and every kind of bad input."""

import json
from pathlib import Path

import pytest
import torch

from inspection.reading import read_masks
from models import load_model
from pruners import prune
from sparsity.mask import Mask
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def mini():
    return load_model("xvlm-mini", weights="random")


@pytest.fixture(scope="module")
def made(mini, tmp_path_factory):
    """Three masks of the mini model at 75 %, and one that is half as sparse."""
    folder = tmp_path_factory.mktemp("masks")
    generator = torch.Generator().manual_seed(0)
    layers = mini.prunable_layers()
    modalities = {name: mini.modality_of(name) for name in layers}
    paths = []
    for name, sparsity in (("a", 0.75), ("b", 0.75), ("c", 0.75), ("half", 0.375)):
        kept = {n: exact(layer.weight.shape, sparsity, generator) for n, layer in layers.items()}
        source = {"model": "xvlm-mini", "pruner": "rand", "seed": 1, "sparsity_asked": sparsity}
        Mask(kept, modalities, source).save(folder / f"{name}.safetensors")
        paths.append(folder / f"{name}.safetensors")
    return paths


def exact(shape, sparsity, generator):
    """A random mask of exactly that sparsity."""
    size = int(torch.tensor(shape).prod())
    kept = torch.ones(size).bool()
    kept[torch.randperm(size, generator=generator)[: round(sparsity * size)]] = False
    return kept.view(shape)


def masks(run, *arguments):
    return run("masks.py", *map(str, arguments))


def refused(done, *texts):
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for text in ("error: ", *texts):
        assert text in done.stderr


def test_inspect(made, run, tmp_path):
    record_file = tmp_path / "new" / "folder" / "i.json"
    done = masks(run, "inspect", made[0], "--html", tmp_path / "i.html", "--json", record_file)
    assert done.returncode == 0, done.stderr
    assert "75.000 % pruned" in done.stdout
    assert "vision_encoder.3" in done.stdout
    record = json.loads(record_file.read_text())
    assert len(record["layers"]) == 56
    assert record["total"]["sparsity"] == pytest.approx(0.75)
    assert "xvlm-mini" in (tmp_path / "i.html").read_text()


def test_compare_random_masks_is_chance(made, run, tmp_path):
    out = [f"--{kind}={tmp_path / kind}" for kind in ("html", "json", "picture")]
    done = masks(run, "compare", *made[:3], "--depth", "modality", *out)
    assert done.returncode == 0, done.stderr
    for pair in json.loads((tmp_path / "json").read_text())["pairs"]:
        assert pair["overall"]["chance"] == pytest.approx(0.0625 / 0.4375)
        assert pair["overall"]["iou"] == pytest.approx(0.0625 / 0.4375, abs=0.002)
    assert (tmp_path / "picture").read_bytes().startswith(b"\x89PNG")


def test_pictures_are_png_and_not_called_otherwise(made, run, tmp_path):
    refused(masks(run, "compare", *made[:2], "--picture", tmp_path / "a.jpg"), "--picture writes PNG", "a.jpg")
    assert not (tmp_path / "a.jpg").exists()


def test_there_and_back_bit_for_bit(made, run, tmp_path):
    there, back = tmp_path / "a.pth", tmp_path / "a.safetensors"
    done = masks(run, "convert", made[0], "-o", there)
    assert done.returncode == 0, done.stderr
    content = torch.load(there, weights_only=True)
    mask = Mask.load(made[0])
    assert all(torch.equal(content[f"{name}_pruning_mask"], mask[name]) for name in mask)
    assert len(content) > 2 * 56, "the published format lists biases and layers that are never pruned"
    done = masks(run, "convert", there, "--model", "xvlm-mini")
    assert done.returncode == 0, done.stderr
    returned = Mask.load(back)
    assert returned == mask
    assert list(returned) == list(mask)
    assert returned.modalities == mask.modalities
    assert "format" not in returned.source
    assert masks(run, "convert", back, "-o", tmp_path / "again.pth").returncode == 0
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert list(again) == list(content)
    assert all(torch.equal(again[key], content[key]) for key in content)


def test_nothing_is_overwritten_unless_forced(made, run, tmp_path):
    there = tmp_path / "a.pth"
    there.write_text("precious")
    refused(masks(run, "convert", made[0], "-o", there), "exists", "--force")
    assert there.read_text() == "precious"
    assert masks(run, "convert", made[0], "-o", there, "--force").returncode == 0
    assert there.stat().st_size > 1_000_000


def test_what_cannot_be_converted(made, run, tmp_path, mini):
    refused(masks(run, "convert", made[0], "-o", tmp_path / "x.safetensors"), "is converted to a .pth file")
    mask = Mask.load(made[0])
    Mask(dict(mask)).save(tmp_path / "nameless.safetensors")
    refused(masks(run, "convert", tmp_path / "nameless.safetensors"), "--model")
    weights = {name: layer.weight.detach() for name, layer in mini.prunable_layers().items()}
    mask.with_values(weights.items()).save(tmp_path / "updated.safetensors")
    refused(masks(run, "convert", tmp_path / "updated.safetensors"), "updated weights", "--without_values")
    assert masks(run, "convert", tmp_path / "updated.safetensors", "--without_values").returncode == 0


def test_published_files_are_compared_once_fitted(made, run, tmp_path):
    assert masks(run, "convert", made[0], "-o", tmp_path / "a.pth").returncode == 0
    refused(masks(run, "compare", made[0], tmp_path / "a.pth"), "has not", "--model")
    done = masks(run, "compare", made[0], tmp_path / "a.pth", "--model", "xvlm-mini", "--depth", "modality")
    assert done.returncode == 0, done.stderr
    assert "IoU 100.0 %" in done.stdout


def test_convolutions_come_back(tmp_path):
    model = load_model("timm:resnet10t", weights="random", overrides={"conv": True})
    mask = prune(model, [], "omp", (0.5,))[0.5]
    mask.save(tmp_path / "a.pth", format="pth", model=model)
    back = read_masks([str(tmp_path / "a.pth")], "timm:resnet10t")[0].mask
    assert back == mask and back.source["conv"] is True


def test_cut_equals_prune_from_scores(run, tmp_path):
    done = run("prune.py", "--model", "xvlm-mini", "--pruner", "omp", "--output_dir", str(tmp_path / "out"), "-s", "90")
    assert done.returncode == 0, done.stderr
    scores = tmp_path / "out" / "omp" / "xvlm-mini_omp_seed42_scores.safetensors"
    options = ("-s", "50", "62.5", "--output_dir")
    assert masks(run, "cut", scores, *options, tmp_path / "ours").returncode == 0
    assert run("prune.py", "--from_scores", str(scores), *options, str(tmp_path / "theirs")).returncode == 0
    for sparsity in ("50", "62.5"):
        ours, theirs = (
            Mask.load(tmp_path / folder / f"omp/xvlm-mini_omp_{sparsity}_seed42.safetensors")
            for folder in ("ours", "theirs")
        )
        assert ours == theirs
        assert ours.source == theirs.source
    refused(masks(run, "cut", scores, "-s", "0.5"), "give percents")
    refused(masks(run, "cut", tmp_path / "none.safetensors", "-s", "50"), "no such file")


def test_draws_are_prunings_with_other_seeds(run, tmp_path):
    """Random masks depend on the seed alone: they agree as far as chance has it."""
    options = ("--model", "xvlm-mini", "--pruner", "rand", "-s", "66.6666667", "--output_dir")
    report = tmp_path / "s.json"
    done = masks(run, "stability", *options, tmp_path / "draws", "--draws", 3, "--seed", 7, "--json", report)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["overall"]["iou"]["mean"] == pytest.approx(found["overall"]["chance"], abs=0.003)
    assert found["overall"]["kept_by"] == pytest.approx(found["overall"]["kept_by_expected"], rel=0.02)
    assert [Path(mask["file"]).name for mask in found["masks"]] == [
        f"xvlm-mini_rand_66.6666667_seed{seed}.safetensors" for seed in (7, 8, 9)
    ]
    assert run("prune.py", *options, str(tmp_path / "alone"), "--seed", "8").returncode == 0
    name = "rand/xvlm-mini_rand_66.6666667_seed8.safetensors"
    assert Mask.load(tmp_path / "alone" / name) == Mask.load(tmp_path / "draws" / name)


def test_stability_of_files(made, run, tmp_path):
    done = masks(run, "stability", *made[:2], "--html", tmp_path / "s.html", "--depth", "modality")
    assert done.returncode == 0, done.stderr
    assert "all among any" in done.stdout
    assert "2 draws of one pruning" in (tmp_path / "s.html").read_text()
    refused(masks(run, "stability", made[0], made[3]), "different sparsities (75 % and 37.5 %)")


class TestBadInput:
    def test_files(self, made, run, tmp_path):
        (tmp_path / "x.safetensors").write_bytes(b"no tensors")
        torch.save({"w": torch.zeros(2)}, tmp_path / "x.pth")
        refused(masks(run, "inspect", tmp_path / "none.safetensors"), "no such file")
        refused(masks(run, "inspect", tmp_path / "x.safetensors"), "corrupt")
        refused(masks(run, "inspect", tmp_path / "x.pth"), "is not a mask file")
        refused(masks(run, "inspect", REPOSITORY / "weights" / "xvlm-mini.safetensors"), "is not a mask file")
        refused(masks(run, "convert", tmp_path / "none.safetensors", "--model", "xvlm-mini"), "no such file")

    def test_layers(self, made, run, tmp_path):
        Mask({"other.weight": torch.ones(2, 2).bool()}).save(tmp_path / "o.safetensors")
        refused(masks(run, "compare", made[0], tmp_path / "o.safetensors"), "vision_encoder.encoder.layers.0.self_attn")
        refused(
            masks(run, "inspect", tmp_path / "o.safetensors", "--model", "xvlm-mini"), "another model", "other.weight"
        )

    def test_outputs(self, made, run, tmp_path):
        before = made[0].read_bytes()
        refused(masks(run, "inspect", made[0], "--json", made[0]), "is one of the masks")
        assert made[0].read_bytes() == before
        refused(masks(run, "inspect", made[0], "--html", tmp_path), "is a folder")
        twice = ("--html", tmp_path / "x", "--json", tmp_path / "x")
        refused(masks(run, "inspect", made[0], *twice), "is named for two outputs")

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (("compare", "a.safetensors"), "at least two masks"),
            (("stability",), "at least two masks"),
            (("stability", "--draws", "3", "-s", "75"), "--model"),
            (("stability", "a.safetensors", "--draws", "3"), "leave out a.safetensors"),
            (("stability", "--model", "xvlm-mini", "--draws", "1", "-s", "75"), "at least 2"),
            (("stability", "--model", "xvlm-mini", "--draws", "2"), "no sparsity given"),
            (("stability", "--model", "xvlm-mini", "--draws", "2", "-s", "63", "75"), "one sparsity at a time"),
            (("stability", "--model", "xvlm-mini", "--draws", "2", "-s", "75", "-p", "multflow"), "did you mean"),
            (("stability", "--model", "xvlm", "--seed", "3"), "--seed has no effect without --draws"),
            (("stability", "--model", "xvml-mini", "--draws", "2", "-s", "75"), "did you mean 'xvlm-mini'"),
        ],
    )
    def test_options(self, run, arguments, text):
        refused(masks(run, *arguments), text)
