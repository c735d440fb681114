"""Class folders: what is an image, what is a class, and what is said of the rest."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from console.errors import InputError
from data.calibration import CalibrationBatches, make_manifest
from data.images import ImageError
from data.labelled import LabelledImages
from data.readers import make_reader
from data.sources import Files
from models.base import ImageShape
from tests.data.configured import configured

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Two classes of four pictures."""
    for name in ("n01", "n02"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number, ending in enumerate(("jpg", "png", "JPEG", "tif")):
            NOISE.save(tmp_path / "train" / name / f"{number}.{ending}")
    return tmp_path / "train"


def hide(folder):
    """What systems and editors leave there."""
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", ".cache"):
        (folder / name).mkdir()
        NOISE.save(folder / name / "0.png")
    for name in ("._0.png", ".DS_Store", "Thumbs.db", ".hidden.jpg"):
        (folder / "n01" / name).write_bytes(b"\0\5\x16\7")


def of(folder):
    return LabelledImages(Files(folder=str(folder)))


def pictures(source):
    return [(source.name(i), source.known(i)) for i in range(len(source))]


def test_clean_folders_as_torchvision_lists_them(folder, capsys):
    source, other = of(folder), ImageFolder(str(folder))
    assert source.classes == other.classes
    assert pictures(source) == other.samples
    listing = json.dumps([[str(path), label] for path, label in other.samples], separators=(",", ":"))
    assert source.listing == hashlib.sha256(listing.encode()).hexdigest()
    assert source.left_out == [] and capsys.readouterr().err == ""


def test_hidden_things_shift_no_label(folder, capsys):
    clean = of(folder)
    hide(folder)
    source = of(folder)
    assert source.classes == clean.classes and source.listing == clean.listing
    assert pictures(source) == pictures(clean)
    of(folder)  # once is enough
    assert capsys.readouterr().err == (
        f"in {folder} are left out: 8 hidden or system entries (first: {folder}/.cache)\n"
    )


def test_what_is_no_image_is_counted(folder, capsys):
    (folder / "README.txt").touch()
    (folder / "n01" / "labels.csv").touch()
    (folder / "n02" / "more.png").mkdir()
    assert len(of(folder)) == 8
    assert capsys.readouterr().err == (
        f"in {folder} are left out: 1 file next to the class folders (first: {folder}/README.txt), "
        f"1 file without the ending of an image (first: {folder}/n01/labels.csv), "
        f"1 folder inside of class folders (first: {folder}/n02/more.png)\n"
    )


def test_a_class_of_hidden_images_alone(folder):
    (folder / "n00").mkdir()
    NOISE.save(folder / "n00" / "._0.png")
    with pytest.raises(
        InputError, match=r"the class folder .*n00 has no images \(1 thing in it is none, first: .*/\._0\.png\): add"
    ):
        of(folder)


def test_links(folder):
    (folder / "n01" / "gone.png").symlink_to(folder / "nowhere.png")
    source = of(folder)
    with pytest.raises(ImageError, match=r"gone\.png \(missing\)"):
        source.read([source.name(i) for i in range(len(source))].index(f"{folder}/n01/gone.png"))
    (folder / "n00").symlink_to(folder / "n01")
    assert of(folder).classes == ["n00", "n01", "n02"]
    (folder / "n03").symlink_to(folder / "nowhere")
    with pytest.raises(InputError, match=r"n03 is a link to nothing, and labels depend on the folders"):
        of(folder)


def test_the_manifest_says_what_was_left_out(folder):
    def manifest():
        reader = make_reader(configured("labelled_images", Files(folder=str(folder))), ImageShape(16, 8), None)
        return make_manifest(CalibrationBatches({"general": reader}, 4, 0), 1, 0, [])["sides"]["general"]

    clean = manifest()
    hide(folder)
    assert manifest() == clean | {"left_out": [f"8 hidden or system entries (first: {folder}/.cache)"]}
