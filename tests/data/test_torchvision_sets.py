"""Sets that torchvision reads, written by hand in the layouts it expects, against a reading of the same files here."""

import hashlib
import json
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import loadmat, savemat

from console.errors import InputError
from data.batches import Side
from data.classification import ImagesToClassify, same_classes
from data.evaluation_batches import check_files
from data.images import ImageError
from data.labelled import LabelledSet
from data.readers import make_reader
from data.sources import Files
from data.torchvision_sets import SETS
from data.transforms import Augmentation
from models.base import ImageShape
from tests.data.configured import configured

DTD = {
    "train": ["woven/woven_1.jpg", "banded/banded_2.jpg", "banded/banded_1.jpg", "dotted/dotted_3.jpg"],
    "val": ["dotted/dotted_1.jpg", "banded/banded_3.jpg", "woven/woven_4.jpg"],
    "test": ["banded/banded_9.jpg", "woven/woven_2.jpg", "dotted/dotted_2.jpg"],
}
FOOD = {
    "train": {"waffles": ["waffles/7", "waffles/3"], "ice_cream": ["ice_cream/11"]},
    "test": {"ice_cream": ["ice_cream/5"], "waffles": ["waffles/1"]},
}
PETS = {
    "trainval": ["Abyssinian_2 1 1 1", "american_bulldog_5 2 2 1", "american_bulldog_1 2 2 1", "Abyssinian_9 1 1 1"],
    "test": ["american_bulldog_7 2 2 1", "Abyssinian_1 1 1 1"],
}
FLOWERS = {"trnid": [3, 1, 6], "valid": [2, 8], "tstid": [4, 7, 5]}
FLOWER_LABELS = [2, 1, 1, 3, 2, 3, 1, 3]  # from 1, of the pictures 1 to 8


def draw(path, label, number):
    """Red says the class, green which picture it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (60 * label, 10 * number, 0)).save(path, quality=100)


def write_dtd(root):
    home = root / "dtd" / "dtd"
    (home / "labels").mkdir(parents=True)
    for split, lines in DTD.items():
        (home / "labels" / f"{split}1.txt").write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            draw(home / "images" / line, ["banded", "dotted", "woven"].index(line.split("/")[0]), int(line[-5]))


def write_food(root):
    home = root / "food-101"
    (home / "meta").mkdir(parents=True)
    for split, classes in FOOD.items():
        (home / "meta" / f"{split}.json").write_text(json.dumps(classes))
        for name, pictures in classes.items():
            for picture in pictures:
                draw(
                    home / "images" / f"{picture}.jpg",
                    ["ice_cream", "waffles"].index(name),
                    int(picture.split("/")[1]),
                )


def write_pets(root):
    home = root / "oxford-iiit-pet"
    (home / "annotations").mkdir(parents=True)
    for split, lines in PETS.items():
        (home / "annotations" / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            name, label, *_ = line.split()
            draw(home / "images" / f"{name}.jpg", int(label) - 1, int(name[-1]))


def write_flowers(root):
    home = root / "flowers-102"
    for number, label in enumerate(FLOWER_LABELS, start=1):
        draw(home / "jpg" / f"image_{number:05}.jpg", label - 1, number)
    savemat(home / "imagelabels.mat", {"labels": np.array([FLOWER_LABELS], dtype=np.uint8)})
    savemat(home / "setid.mat", {name: np.array([numbers], dtype=np.uint16) for name, numbers in FLOWERS.items()})


def read_dtd(root, split):
    lines = (root / "dtd/dtd/labels" / f"{split}1.txt").read_text().split()
    classes = sorted(path.name for path in (root / "dtd/dtd/images").iterdir())
    return [(root / "dtd/dtd/images" / line, classes.index(line.split("/")[0])) for line in lines]


def read_food(root, split):
    listed = json.loads((root / "food-101/meta" / f"{split}.json").read_text())
    return [
        (root / "food-101/images" / f"{picture}.jpg", sorted(listed).index(name))
        for name, pictures in listed.items()
        for picture in pictures
    ]


def read_pets(root, split):
    lines = (root / "oxford-iiit-pet/annotations" / f"{split}.txt").read_text().splitlines()
    return [(root / "oxford-iiit-pet/images" / f"{line.split()[0]}.jpg", int(line.split()[1]) - 1) for line in lines]


def read_flowers(root, split):
    numbers = loadmat(root / "flowers-102/setid.mat")[{"train": "trnid", "val": "valid", "test": "tstid"}[split]][0]
    labels = loadmat(root / "flowers-102/imagelabels.mat")["labels"][0]
    return [(root / "flowers-102/jpg" / f"image_{n:05}.jpg", int(labels[n - 1]) - 1) for n in numbers]


HERE = {
    "dtd": (write_dtd, read_dtd, ["banded", "dotted", "woven"]),
    "food101": (write_food, read_food, ["ice_cream", "waffles"]),
    "pets": (write_pets, read_pets, ["Abyssinian", "American Bulldog"]),
    "flowers102": (write_flowers, read_flowers, torchvision.datasets.Flowers102.classes),
}
"""Name -> how the set is written, how a split is read here, its classes."""


def checked(root, monkeypatch):
    """torchvision compares Flowers102's files with checksums: those of the files written here."""
    sums = {
        key: (name, hashlib.md5((root / "flowers-102" / name).read_bytes()).hexdigest())
        for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    monkeypatch.setattr(
        torchvision.datasets.Flowers102, "_file_dict", torchvision.datasets.Flowers102._file_dict | sums
    )


@pytest.fixture(params=HERE)
def written(request, tmp_path, monkeypatch):
    """The name of a set, and the folder where it lies."""
    write, _, _ = HERE[request.param]
    write(tmp_path)
    if request.param == "flowers102":
        checked(tmp_path, monkeypatch)
    return request.param, tmp_path


def opened(written, *splits):
    name, folder = written
    return LabelledSet(Files(folder=str(folder), torchvision=name), list(splits)).open()


def test_splits_alone_and_joined(written):
    name, folder = written
    _, read, classes = HERE[name]
    splits = list(SETS[name].splits)
    assert splits[-1] == "test"
    for asked in (*([split] for split in splits), splits[:-1], splits[-2::-1]):
        source = opened(written, *asked)
        expected = [pair for split in asked for pair in read(folder, split)]
        assert [(source.name(i), source.known(i)) for i in range(len(source))] == [(str(p), n) for p, n in expected]
        assert source.classes == classes
        for i, (path, label) in enumerate(expected):
            image, known = source.read(i)
            assert np.array_equal(np.asarray(image), np.asarray(Image.open(path).convert("RGB")))
            assert known == label == round(image.getpixel((5, 5))[0] / 60)
            assert source.file(i) == str(path)
    parts = [opened(written, *asked).listing for asked in (splits[:-1], ["test"])]
    assert all(parts) and parts[0] != parts[1]  # what a calibration writes down of them


def test_batches_for_training_and_for_testing(written):
    name, folder = written
    training = list(SETS[name].splits)[:-1]
    still = Augmentation(crop=[1.0, 1.0], flip=0.0, ops=0)
    files = Files(folder=str(folder), torchvision=name)
    shape = ImageShape(16, 4, mean=(0.0,) * 3, std=(1.0,) * 3)
    reader = make_reader(configured("classification", files, splits=training, augmentation=still), shape, None)
    batch = Side("train", reader, len(reader.source), seed=0)[0].batch
    assert (batch["image"][:, 0, 8, 8] * 255 / 60).round().long().tolist() == batch["label"].tolist()
    data = ImagesToClassify(LabelledSet(files, ["test"]), shape)
    check_files(data)
    assert (data[0][0][0, 8, 8] * 255 / 60).round().item() == data[0][1]
    if name == "flowers102":  # three of its 102 classes are written
        with pytest.raises(InputError, match=r"no picture of class 3 \(sweet pea\) .*, nor of 98 other classes: add"):
            same_classes(reader.source, data.source)
    else:
        assert same_classes(reader.source, data.source) == len(HERE[name][2])


def test_a_picture_that_is_gone(written):
    name, folder = written
    path, _ = HERE[name][1](folder, "test")[1]
    path.unlink()
    with pytest.raises(ImageError, match=r"\.jpg \(missing\)"):
        opened(written, "test").read(1)


@pytest.mark.parametrize("name", HERE)
def test_splits_that_there_are_not(name, tmp_path):
    first = next(iter(SETS[name].splits))
    several = " for those of training together" if len(SETS[name].splits) > 2 else ""
    for asked in ([], ["dev"], [first, "test"], [first, first], ["test", "test"]):
        with pytest.raises(InputError, match=rf"{name} has the splits {first}, .*test: ask for one of them"):
            LabelledSet(Files(folder=str(tmp_path), torchvision=name), asked).open()
        with pytest.raises(InputError, match=rf"{several}, not \[{', '.join(asked)}\]$"):
            LabelledSet(Files(folder=str(tmp_path), torchvision=name), asked).open()


def offline(*args, **kwargs):
    raise URLError("Temporary failure in name resolution")


@pytest.mark.parametrize("name", HERE)
def test_without_a_network_archives_are_named(name, tmp_path, monkeypatch):
    module = getattr(torchvision.datasets, SETS[name].name).__module__
    monkeypatch.setattr(f"{module}.download_and_extract_archive", offline)
    with pytest.raises(InputError) as caught:
        LabelledSet(Files(root=str(tmp_path), torchvision=name), ["test"]).open()
    text, folder = str(caught.value), tmp_path / "data" / name
    assert f"{name} is not in {folder} and cannot be downloaded (<urlopen error Temporary failure" in text
    assert text.endswith(f"unpack it there, so that {folder / SETS[name].unpacked} exists")
    HERE[name][0](folder)  # done as the sentence says
    assert (folder / SETS[name].unpacked).is_dir()


def test_archives_are_those_of_torchvision():
    made = torchvision.datasets
    prefix, files = made.Flowers102._download_url_prefix, made.Flowers102._file_dict
    fetched = {
        "cifar10": [made.CIFAR10.url],
        "cifar100": [made.CIFAR100.url],
        "dtd": [made.DTD._URL],
        "food101": [made.Food101._URL],
        "flowers102": [prefix + files["image"][0], files["label"][0], files["setid"][0]],
        "pets": [made.OxfordIIITPet._RESOURCES[0][0], made.OxfordIIITPet._RESOURCES[1][0].rpartition("/")[2]],
    }
    assert fetched.keys() == SETS.keys()
    assert all(part in SETS[name].archives for name, parts in fetched.items() for part in parts)


@pytest.mark.parametrize("name", HERE)
def test_it_is_downloaded_when_it_is_not_there(name, tmp_path, monkeypatch):
    """Once, below the folder that the configuration says."""
    write, read, _ = HERE[name]
    made = getattr(torchvision.datasets, SETS[name].name)
    asked = []

    def download(url, *args, **kwargs):
        if not asked:
            write(tmp_path / "new")
        asked.append(url)

    if name == "flowers102":
        write_flowers(tmp_path / "elsewhere")
        checked(tmp_path / "elsewhere", monkeypatch)
        monkeypatch.setattr(f"{made.__module__}.download_url", download)
    monkeypatch.setattr(f"{made.__module__}.download_and_extract_archive", download)
    for _ in range(2):
        source = LabelledSet(Files(folder=str(tmp_path / "new"), torchvision=name), ["test"]).open()
        assert len(source) == len(read(tmp_path / "new", "test"))
    assert len(asked) == {"pets": 2, "flowers102": 3}.get(name, 1)


def test_half_of_a_set_is_no_set(tmp_path, monkeypatch):
    """An interrupted download left the folder: torchvision takes it for the whole."""
    write_dtd(tmp_path)
    (tmp_path / "dtd/dtd/labels/test1.txt").unlink()
    with pytest.raises(InputError, match=r"dtd is not in .* and cannot be downloaded \(.*test1\.txt.*\): fetch"):
        LabelledSet(Files(folder=str(tmp_path), torchvision="dtd"), ["test"]).open()
