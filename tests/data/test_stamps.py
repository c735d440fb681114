"""Captioned stamps in the official formats, from a made-up folder of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from console.errors import InputError
from data.labelled import LabelledSet
from data.records import is_text
from data.sources import Files, Pairs, by_image
from data.stamps import Found, Stamp, find_stamps, sort_into_classes, write_stamps
from storage.hashing import hash_file

CLASSES = {"animals/birds": 10, "animals/fish": 5, "animals/mammals/cats": 3, "food": 6, "sky": 2}


def picture(number):
    """Transparent on the left, a colour of its own on the right."""
    pixels = np.zeros((6, 8, 4), np.uint8)
    pixels[:, 4:] = (number, 255 - number, 7, 255)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Stamps of five folders; some cannot be used."""
    folder, number = tmp_path_factory.mktemp("stamps"), 0
    for kind, count in CLASSES.items():
        (folder / kind).mkdir(parents=True)
        for index in range(count):
            picture(number).save(folder / kind / f"s{index}.png")
            lines = [f"The {kind} {index}.", f"de.utf8=Das {kind} {index}.", "fr.utf8="[: 8 * (number % 2)]]
            (folder / kind / f"s{index}.txt").write_text("\n".join(lines), encoding="utf-8")
            number += 1
    food = folder / "food"
    (food / "pear.svg").write_text("<svg")
    (food / "s0.svg").write_text("<svg/>")
    (food / "silent.png").write_bytes(b"no caption")
    (food / "again.png").write_bytes((food / "s0.png").read_bytes())
    (food / "torn.png").write_bytes((food / "s0.png").read_bytes()[:40])
    (food / "dots.png").write_bytes((food / "s1.png").read_bytes())
    for name, said in {"again": "Again.", "torn": "Torn.", "dots": "...", "pear": "A pear."}.items():
        (food / f"{name}.txt").write_text(said)
    (folder / "animals" / "birds" / "s3.txt").write_text("The bird without a translation.")
    return folder


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """The folder that is written, and its manifest."""
    folder = tmp_path_factory.mktemp("made") / "stamps"
    return folder, write_stamps(source, folder, ["de"])


def test_what_is_left_out_is_named(made):
    _, manifest = made
    assert manifest["left_out"] == {
        "SVG of a picture that is there as PNG": ["food/s0.svg"],
        "without a caption": ["food/dots.png", "food/silent.png"],
        "the same picture again": ["food/s0.png"],  # again.png comes first
        "broken": ["food/pear.svg", "food/torn.png"],
        "in a class of fewer than 5 pictures": [
            *(f"animals/mammals/cats/s{i}.png" for i in range(3)),
            "sky/s0.png",
            "sky/s1.png",
        ],
    }
    assert manifest["missing_translations"] == {"de": ["animals/birds/s3.png", "food/again.png"]}


def test_classes_are_split_by_picture(made, source, tmp_path):
    folder, manifest = made
    found = {split: LabelledSet(Files(folder=str(folder / "images")), [split]).open() for split in SPLITS}
    assert {tuple(one.classes) for one in found.values()} == {("animals-birds", "animals-fish", "food")}
    assert {split: len(one) for split, one in found.items()} == {"train": 14, "val": 3, "test": 4}
    again = write_stamps(source, tmp_path / "again", ["de"])
    assert again == manifest
    coarse = write_stamps(source, tmp_path / "coarse", [], depth=1, fewest=3)
    assert coarse["classes"] == ["animals", "food"]
    assert sum(one["class"] == "animals" for one in coarse["pictures"].values()) == 18
    by_top = {one["source"]: one["class"] for one in coarse["pictures"].values()}
    assert by_top["animals/mammals/cats/s0.png"] == "animals"


SPLITS = ("train", "val", "test")


def test_svg_is_drawn_where_its_renderer_is_installed(tmp_path, monkeypatch):
    """Sizes in points, of which there are 4/3 pixels; transparent where nothing is drawn."""
    (tmp_path / "in" / "food").mkdir(parents=True)
    for index in range(3):
        drawn = f'<rect x="3" width="3" height="3" fill="#{index:02d}ff00"/>'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="6pt" height="3pt" viewBox="0 0 6 3">{drawn}</svg>'
        (tmp_path / "in" / "food" / f"s{index}.svg").write_text(svg)
        (tmp_path / "in" / "food" / f"s{index}.txt").write_text(f"Pear {index}.")
    pictures = write_stamps(tmp_path / "in", tmp_path / "out", [], fewest=3)["pictures"]
    assert sorted(one["source"] for one in pictures.values()) == [f"food/s{i}.svg" for i in range(3)]
    for path, one in pictures.items():
        pixels = np.asarray(Image.open(tmp_path / "out" / "images" / path))
        assert pixels.shape == (4, 8, 3)
        assert (pixels[:, :4] == 255).all()
        assert (pixels[:, 4:] == (int(one["source"][6]), 255, 0)).all()
    monkeypatch.setattr("data.stamps.find_spec", lambda name: None)
    with pytest.raises(InputError, match="has no picture with a caption"):
        write_stamps(tmp_path / "in", tmp_path / "again", [])
    assert find_stamps(source_with_png(tmp_path / "in")).left_out == {
        "SVG, which needs another package: pip install resvg-py": [f"food/s{i}.svg" for i in range(3)]
    }


def source_with_png(folder):
    """The folder with a PNG in it."""
    picture(1).save(folder / "food" / "plum.png")
    (folder / "food" / "plum.txt").write_text("A plum.")
    return folder


def test_small_classes_join_their_parent(source, tmp_path):
    manifest = write_stamps(source, tmp_path / "deep", [], depth=3, fewest=4)
    assert manifest["classes"] == ["animals-birds", "animals-fish", "food"]  # three cats are still too few one above
    manifest = write_stamps(source, tmp_path / "deeper", [], depth=3, fewest=3)
    assert manifest["classes"] == ["animals-birds", "animals-fish", "animals-mammals-cats", "food"]


def test_transparency_shows_the_ground(made, source, tmp_path):
    folder, manifest = made
    path, one = next(iter(manifest["pictures"].items()))
    with Image.open(folder / "images" / path) as image:
        assert image.mode == "RGB"
        pixels = np.asarray(image)
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == np.asarray(Image.open(source / one["source"]))[:, 4:, :3]).all()
    write_stamps(source, tmp_path / "grey", [], ground="#808080")
    assert (np.asarray(Image.open(tmp_path / "grey" / "images" / path))[:, :4] == 128).all()


def test_every_language_is_read_by_the_readers(made):
    folder, manifest = made
    images = {"image_roots": {"coco": "images", "cc3m": "images"}, "root": str(folder)}
    pretrain = Pairs(Files(annotations=["data/pretrain/cc3m_pretrain.json"], **images))
    assert len(pretrain) == sum(one["split"] == "train" for one in manifest["pictures"].values())
    image, caption = pretrain.read(0)
    assert image.size == (8, 6)
    assert caption.startswith("The ")
    assert len(Pairs(Files(annotations=["data/pretrain/cc3m_pretrain.de.json"], **images))) <= len(pretrain)
    _, gallery = by_image(Files(annotations=["data/finetune/itr/coco_test.de.json"], **images), {})
    assert all(Path(path).is_file() for path in gallery)
    (words,) = next(iter(gallery.values()))[0]["caption"]
    assert words.startswith("Das ")
    truth = json.loads((folder / "data/finetune/ic/coco_karpathy_test_gt.json").read_text())
    asked = json.loads((folder / "data/finetune/ic/coco_karpathy_test.json").read_text())
    assert [one["id"] for one in truth["images"]] == [one["image_id"] for one in asked]
    assert all(is_text(one["caption"]) for one in truth["annotations"])


def test_the_manifest_has_the_hash_of_every_file(made):
    folder, manifest = made
    hashes = manifest["annotations"] | {f"images/{path}": one["sha256"] for path, one in manifest["pictures"].items()}
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*.*")} == {*hashes, "manifest.json"}
    assert all(hash_file(folder / name) == value for name, value in hashes.items())


def test_bad_input(source, made, tmp_path):
    with pytest.raises(InputError, match="apt-get install tuxpaint-stamps-default"):
        write_stamps(tmp_path / "nowhere", tmp_path / "out", [])
    with pytest.raises(InputError, match=r"no caption is in the language 'dd' \(did you mean 'de'\?\)"):
        write_stamps(source, tmp_path / "out", ["dd"])
    with pytest.raises(InputError, match="is there already"):
        write_stamps(source, made[0], [])
    with pytest.raises(InputError, match="--fewest is 2: give 3 or more"):
        write_stamps(source, tmp_path / "out", [], fewest=2)
    with pytest.raises(InputError, match="ground is a colour"):
        write_stamps(source, tmp_path / "out", [], ground="reddish")
    names = enumerate(("a/d.png", "a/e.png", "a/b-c.png", "a/b/c.png"))  # two for the other splits
    same = Found([Stamp(tmp_path / name, name, {"en": "x"}, str(number)) for number, name in names])
    with pytest.raises(InputError, match=r"a/b-c\.png and a/b/c\.png would be written to one file"):
        sort_into_classes(same, depth=1, fewest=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no picture with a caption"):
        write_stamps(tmp_path / "empty", tmp_path / "out", [])
    assert not (tmp_path / "out").exists()
