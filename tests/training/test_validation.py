"""Training images held out for validation: which, how many, what they decide, and that training never sees them."""

import json
import random

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from console.errors import InputError
from data.classification import hold_out
from data.labelled import LabelledSet
from data.sources import Files
from tests.training.small_classification import options

SIZES = {"a": 1, "b": 2, "c": 5, "d": 10, "e": 17}


def fill(folder, sizes):
    generator = random.Random(0)
    for name, size in sizes.items():
        (folder / name).mkdir(parents=True)
        for number in range(size):
            colour = tuple(generator.randrange(256) for _ in range(3))
            Image.new("RGB", (16, 16), colour).save(folder / name / f"{number:02}.png")


def parts(folder, share, seed):
    source = LabelledSet(Files(folder=str(folder))).open()
    return source, *hold_out(source, share, seed)


def names(source):
    return [source.name(i) for i in range(len(source))]


@pytest.mark.parametrize(
    ("share", "held"),
    [(0.1, [0, 0, 0, 1, 2]), (0.3, [0, 1, 2, 3, 5]), (0.5, [0, 1, 2, 5, 8]), (0.99, [0, 1, 4, 9, 16])],
)
def test_a_share_of_each_class_is_held_out(share, held, tmp_path):
    """Rounded (half to even), but one picture of each class stays."""
    fill(tmp_path, SIZES)
    source, training, validation = parts(tmp_path, share, 7)
    assert sorted(names(training) + names(validation)) == names(source)
    for part in (training, validation):
        assert names(part) == sorted(names(part)) and part.classes == source.classes
        for i in range(len(part)):
            image, label = part.read(i)
            assert source.classes[label] == part.name(i).split("/")[-2] and label == part.known(i)
            assert image.getpixel((0, 0)) == Image.open(part.name(i)).getpixel((0, 0))
    labels = [validation.known(i) for i in range(len(validation))]
    assert [labels.count(label) for label in range(5)] == held


def test_the_draw_is_the_seeds(tmp_path):
    fill(tmp_path / "one", SIZES)
    drawn = [names(parts(tmp_path / "one", 0.3, seed)[2]) for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]
    fill(tmp_path / "other", SIZES | {"a": 4})  # other classes are drawn as before
    again = names(parts(tmp_path / "other", 0.3, 7)[2])
    assert [name.split("/")[-2:] for name in again if "/a/" not in name] == [name.split("/")[-2:] for name in drawn[0]]


def test_a_share_of_no_picture(tmp_path):
    fill(tmp_path, {"a": 1, "b": 4})
    with pytest.raises(InputError, match=r"validation: 0\.1 of each class of .* is less than one picture of at most 4"):
        parts(tmp_path, 0.1, 7)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Three classes of five pictures to train with, two of them held out, and of two for testing."""
    folder = tmp_path_factory.mktemp("pictures")
    fill(folder / "train", dict.fromkeys("abc", 5))
    fill(folder / "test", dict.fromkeys("abc", 2))
    files = {"folder": str(folder)}
    augmentation = {"crop": [1.0, 1.0], "flip": 0.0, "ops": 0}
    train = {"reader": "classification", "files": files, "splits": ["train"], "augmentation": augmentation}
    return {
        "epochs": 3,
        "batch_size": 3,
        "validation": 0.4,
        "recipe": {"lr": 2.0e-3, "weight_decay": 0.0},
        "datasets": {"colours": {"train": train, "test": {"files": files, "splits": ["test"]}}},
    }


@pytest.fixture
def classify(settings, run, tmp_path):
    """Run with changed settings in a folder; its results, the lines of its epochs, and what it said."""

    def call(name, *more, code=0, **changes):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings | changes))
        done = run(*options(path, tmp_path / name, *more))
        said = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == code, said
        if code:
            return said
        lines = tmp_path / name / "epochs.jsonl"
        epochs = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        return json.loads((tmp_path / name / "results.json").read_text()), epochs, said

    return call


def items(folder):
    (group,) = json.loads((folder / "items.json").read_text())["groups"].values()
    return group["scores"]["top1"]


def test_held_out_images_replace_the_test_images(classify, tmp_path):
    results, epochs, said = classify("run")
    assert "6 of 15 training images are held out for validation, 0.4 of each class" in said
    assert "epoch 3, validation: top1" in said and "epoch 3, test" not in said
    assert results["epoch"] is None and len(epochs) == 3
    assert not (tmp_path / "run" / "best.safetensors").exists()
    assert len(items(tmp_path / "run")) == 6

    weights = ("--evaluate", "-pre", tmp_path / "run" / "last.safetensors")
    val, _, said = classify("val", *weights, "--split", "val")
    assert val["metrics"]["top1"] == epochs[-1]["top1"] and "val: top1" in said
    assert 100 * sum(items(tmp_path / "val")) / 6 == pytest.approx(val["metrics"]["top1"], abs=0.01)
    test, _, _ = classify("test", *weights)
    assert test["metrics"] == results["metrics"]

    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert written["validation"] == 0.4
    again, lines, _ = classify("again", **written)
    assert again["metrics"] == results["metrics"] and lines == epochs


def test_training_sees_none_of_them(classify, settings, tmp_path):
    """Three images a class are three batches of three: the same weights come of a folder that never had the others."""
    source = LabelledSet(Files(folder=settings["datasets"]["colours"]["train"]["files"]["folder"]), ["train"]).open()
    kept, held = hold_out(source, 0.4, 42)
    for part in ("train", "test"):
        for i in range(len(kept)):
            image, label = kept.read(i)
            place = tmp_path / "kept" / part / "abc"[label]
            place.mkdir(parents=True, exist_ok=True)
            image.save(place / kept.name(i).rpartition("/")[2])
    assert len(held) == 6
    classify("run")
    files = {"folder": str(tmp_path / "kept")}
    own = settings["datasets"]["colours"]
    other = {"train": own["train"] | {"files": files}, "test": own["test"] | {"files": files}}
    _, _, said = classify("without", validation=None, datasets={"colours": other})
    assert "epoch 3, test: top1" in said
    ours, without = (load_file(tmp_path / name / "last.safetensors") for name in ("run", "without"))
    assert all(torch.equal(tensor, without[name]) for name, tensor in ours.items())


def test_another_seed_holds_out_others(classify, settings, tmp_path):
    folder = settings["datasets"]["colours"]["train"]["files"]["folder"]
    source = LabelledSet(Files(folder=folder), ["train"]).open()
    assert names(hold_out(source, 0.4, 42)[1]) != names(hold_out(source, 0.4, 5)[1])
    classify("seed5", "--seed", 5)
    classify("seed5_of_the_file", seed=5)
    ours, others = (load_file(tmp_path / name / "last.safetensors") for name in ("seed5", "seed5_of_the_file"))
    assert all(torch.equal(tensor, others[name]) for name, tensor in ours.items())


def test_the_best_epoch_counts_where_it_is_asked_for(classify, tmp_path):
    results, epochs, _ = classify("best", best_epoch=True, epochs=4)
    scores = [line["top1"] for line in epochs]
    assert results["epoch"] == 1 + scores.index(max(scores))
    best = tmp_path / "best" / "best.safetensors"
    found, _, _ = classify("of_the_best", "--evaluate", "-pre", best, best_epoch=True, epochs=4)
    assert found["metrics"] == results["metrics"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 1.0}, "validation is a share of the training images, from 0 to below 1, not 1.0"),
        ({"validation": -0.1}, "validation is a share of the training images, from 0 to below 1, not -0.1"),
        ({"validation": 0, "best_epoch": True}, "best_epoch selects the epoch on held-out images: add"),
        ({"skip_val": True, "best_epoch": True}, "add validation, such as 0.1, without skip_val"),
        ({"validation": 0.05}, "0.05 of each class of"),
    ],
)
def test_settings_that_mean_nothing(changes, message, classify):
    assert message in classify("run", code=2, **changes)


def test_none_are_held_out_unless_asked(classify):
    assert "image_classification has no validation split" in classify(
        "run", "--evaluate", "--split", "val", validation=0, code=2
    )
