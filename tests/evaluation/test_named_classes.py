"""Zero-shot classification: features of names by hand, files of names, and what is refused."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from console.errors import InputError
from data.labelled import LabelledSet
from data.sources import Files
from data.tokenizer import load_tokenizer
from evaluation import zero_shot
from evaluation.named_classes import NamedClasses, NamedClassSettings, names_of, read_templates
from models import load_model

TEMPLATES = ["a {}", "the {} in the middle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images of each of three classes, in class folders."""
    root = tmp_path_factory.mktemp("classes")
    for label, name in enumerate(("blue_star", "green_ring", "red_circle")):
        (root / name).mkdir()
        for number in range(2):
            pixels = np.random.default_rng(10 * label + number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def mini():
    return load_model("clip-mini", weights="random")


def settings(folder, **changes):
    return NamedClassSettings(LabelledSet(Files(folder=str(folder))), templates=TEMPLATES, sep=True, **changes)


@torch.no_grad()
def test_the_nearest_texts_name_the_class(folder, mini):
    tokenizer = load_tokenizer(mini.tokenizer)
    named = NamedClasses(settings(folder), mini.image_shape, tokenizer)
    assert named.names == ["blue star", "green ring", "red circle"]
    classes = []
    for name in named.names:
        total = 0
        for text in (f"a {name}", f"the {name} in the middle"):
            ids = torch.tensor([tokenizer.encode(text, True, None)])
            feature = mini.module.get_text_features(input_ids=ids).pooler_output[0]
            total = total + feature / feature.norm()
        classes.append(total / total.norm())
    torch.testing.assert_close(named.features(mini), torch.stack(classes))
    images = torch.stack([named.images[i][0] for i in range(6)])
    nearest = (mini.module.get_image_features(pixel_values=images).pooler_output @ torch.stack(classes).t()).argmax(1)
    assert named.right(mini).tolist() == (nearest == torch.tensor([0, 0, 1, 1, 2, 2])).tolist()


@pytest.mark.parametrize("line", ["n02,{}", "n02 {}, another word", "n02\t{}"])
def test_files_of_names(line, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("folder,name\nn01,tench\n" + line.format("big fish") + "\n")
    assert names_of(str(path), ["n01", "n02"]) == ["tench", "big fish"]
    with pytest.raises(InputError, match=r"names 2 of 3 classes and not 'n03'"):
        names_of(str(path), ["n01", "n02", "n03"])


def test_classes_with_blanks(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("golden,not this one\ngolden retriever, a retriever\npink primrose\tprimrose\n")
    assert names_of(str(path), ["golden retriever", "pink primrose"]) == ["a retriever", "primrose"]
    assert names_of(str(path), ["golden", "golden retriever"])[0] == "not this one"


def test_templates_of_a_file(tmp_path):
    (tmp_path / "some.txt").write_text("a {}\n\none {} here\n")
    assert read_templates([str(tmp_path / "some.txt")]) == ["a {}", "one {} here"]
    assert read_templates(["a {}", "no {}"]) == ["a {}", "no {}"]
    for wrong in (["a {}", "nothing"], ["{} and {}"], [str(tmp_path / "none.txt")]):
        with pytest.raises(InputError, match=r"place \{\} for a class's name"):
            read_templates(wrong)


def test_the_command(folder, tmp_path, monkeypatch):
    classes = {"images": {"files": {"folder": str(folder)}}, "templates": ["a {}"], "sep": True}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"classes": classes}))
    base = ["zero_shot", "--model", "clip-mini", "--weights", "random", "--config", str(tmp_path / "c.yaml")]
    monkeypatch.setattr(sys, "argv", [*base, "--templates", "a {}", "the {}", "--json", str(tmp_path / "out.json")])
    zero_shot.main()
    (row,) = json.loads((tmp_path / "out.json").read_text())
    assert row["mask"] == "dense" and row["top-1"] in [round(100 * n / 6, 2) for n in range(7)]
    assert len(json.loads((tmp_path / "items.json").read_text())["groups"]["classes"]["ids"]) == 6


def test_a_model_without_texts_is_refused(folder, tmp_path, monkeypatch):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"classes": {"images": {"files": {"folder": str(folder)}}}}))
    base = ["zero_shot", "--model", "dino-mini", "--weights", "random", "--config", str(tmp_path / "c.yaml")]
    monkeypatch.setattr(sys, "argv", base)
    with pytest.raises(InputError, match=r"has 'classes', which a DINO does not support"):
        zero_shot.main()
