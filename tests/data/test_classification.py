"""Classification data: CIFAR's files without a network, folders and tables, and the transforms step by step."""

import csv
import hashlib
import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision import transforms as T

from console.errors import InputError
from data.batches import Side
from data.classification import (
    RECIPE,
    ImagesToClassify,
    classification_transform,
    same_classes,
)
from data.evaluation_batches import check_files, evaluation_batches
from data.labelled import LabelledSet
from data.miniworld import ensure
from data.readers import make_reader
from data.sources import Files
from data.transforms import Augmentation, centre_transform
from models.base import ImageShape
from tests.data.configured import configured

SHAPE = ImageShape(16, 4, mean=(0.0,) * 3, std=(1.0,) * 3)
STILL = Augmentation(crop=[1.0, 1.0], flip=0.0, ops=0)


def tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Two splits of two classes; the colour tells the class."""
    for split, count in (("train", 4), ("test", 3)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (20, 16), (255 * label, 0, 0)).save(tmp_path / split / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10's layout with ten images a batch; torchvision checks it against the checksums of these files."""
    home = tmp_path / "cifar10" / "cifar-10-batches-py"
    home.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def save(name, content):
        (home / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((home / name).read_bytes()).hexdigest()]

    def batch(name):
        pixels = generator.integers(0, 256, (10, 3072), dtype=np.uint8)
        return save(name, {"data": pixels, "labels": list(range(10))}), pixels

    made = [batch(f"data_batch_{i}") for i in range(1, 6)]
    test, pixels = batch("test_batch")
    names = [f"class {i}" for i in range(10)]
    meta = dict(zip(("filename", "md5"), save("batches.meta", {"label_names": names}), strict=True))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", [entry for entry, _ in made])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", [test])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", meta | {"key": "label_names"})
    return tmp_path / "cifar10", [pixels for _, pixels in made], pixels


def test_evaluation_transform_step_by_step():
    """Shorter side to 256 (in proportion for other sizes), the middle cut out, normalised with CLIP's numbers."""
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    for side, shorter, longer in ((224, 256, 384), (64, 73, 109)):
        image = noise(300, 200)
        found = centre_transform(ImageShape(side, 16))(image)
        resized = image.resize((longer, shorter), Image.Resampling.BICUBIC)
        left, top = round((longer - side) / 2), round((shorter - side) / 2)
        expected = (tensor(resized.crop((left, top, left + side, top + side))) - mean[:, None, None]) / std[
            :, None, None
        ]
        assert torch.allclose(found, expected, atol=1e-5)


def test_training_transform_is_torchvisions_recipe():
    image = noise(40, 30)
    bicubic = T.InterpolationMode.BICUBIC
    for seed in range(5):
        torch.manual_seed(seed)
        augmented = T.RandAugment()(image)
        expected = tensor(T.RandomResizedCrop(16, interpolation=bicubic)(augmented))
        torch.manual_seed(seed)
        assert torch.equal(classification_transform(SHAPE, RECIPE)(image), expected)


def test_nothing_is_mirrored_unless_asked(folder):
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    image.paste((0, 0, 255), (8, 0, 16, 16))
    recipe = classification_transform(SHAPE, Augmentation(crop=[1.0, 1.0], flip=RECIPE.flip, ops=0))
    assert all(recipe(image)[0, 8, 0] > 0.9 for _ in range(50))
    other = classification_transform(SHAPE, Augmentation(crop=[1.0, 1.0], flip=0.5, ops=0))
    assert 10 < sum(bool(other(image)[0, 8, 0] > 0.9) for _ in range(50)) < 40


def test_image_folders_with_splits(folder):
    files = Files(root=str(folder.parent), folder=folder.name)
    config = configured("classification", files, splits=["train"], augmentation=STILL)
    loaded = Side("images", make_reader(config, SHAPE, None), 8, seed=0)[0]
    assert sorted(loaded.used) == list(range(8))
    labels = loaded.batch["label"]
    assert labels.dtype == torch.int64 and labels.tolist() == [int(index >= 4) for index in loaded.used]
    assert torch.equal(loaded.batch["image"][:, 0].amax(dim=(1, 2)).round().long(), labels)
    data = ImagesToClassify(LabelledSet(files, ["test"]), SHAPE)
    batches = list(evaluation_batches(data, 4))
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.cat([batch["image"] for batch in batches])[:, 0].amax(dim=(1, 2)).tolist() == [0, 0, 0, 1, 1, 1]
    assert len(ImagesToClassify(LabelledSet(files, ["test"]), SHAPE, limit=2)) == 2
    flat = LabelledSet(Files(folder=str(folder / "train"))).open()
    assert len(flat) == 8 and flat.classes == ["cat", "dog"]
    with pytest.raises(InputError, match="name one split"):
        LabelledSet(files, ["train", "test"]).open()
    with pytest.raises(InputError, match=r"there is no folder .*val: unpack"):
        LabelledSet(files, ["val"]).open()
    (folder / "test" / "cat" / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"needs all its images, but one cannot be read: .*1\.png"):
        ImagesToClassify(LabelledSet(files, ["test"]), SHAPE)[1]


def test_classes_of_both_sides_must_be_the_same(folder):
    training, test = (LabelledSet(Files(folder=str(folder)), [split]).open() for split in ("train", "test"))
    assert same_classes(training, test) == 2
    (folder / "train" / "ant").mkdir()
    with pytest.raises(InputError, match=r"the class folder .*ant has no images: add images"):
        LabelledSet(Files(folder=str(folder)), ["train"]).open()
    noise(20, 16).save(folder / "train" / "ant" / "0.png")
    more = LabelledSet(Files(folder=str(folder)), ["train"]).open()
    with pytest.raises(InputError, match=r"different classes \(3 and 2; only on one side: ant\)"):
        same_classes(more, test)


def test_one_class_is_nothing_to_tell_apart(folder):
    for split in ("train", "test"):
        (folder / split / "dog").rename(folder / f"{split} dogs")
    training, test = (LabelledSet(Files(folder=str(folder)), [split]).open() for split in ("train", "test"))
    with pytest.raises(InputError, match=r"train has only one class \('cat'\), and a classifier .*: name the folder"):
        same_classes(training, test)
    reader = make_reader(configured("labelled_images", Files(folder=str(folder / "train"))), SHAPE, None)
    assert len(reader.source) == 4  # to calibrate on, it will do


def test_every_class_of_a_table_needs_a_picture(folder):
    """A class of test pictures alone would be learnt as another, were classes counted by what is seen."""
    table = folder / "split.csv"
    files = Files(annotations=[str(table)], image_roots={"any": str(folder)})

    def classes(*rows):
        with table.open("w", newline="") as file:
            csv.writer(file).writerows(
                [("filename", "split", "class"), *((f"{n}.png", *r) for n, r in enumerate(rows))]
            )
        return same_classes(*(LabelledSet(files, splits).open() for splits in (["train", "val"], ["test"])))

    assert classes(("train", 0), ("val", 2), ("train", 1), ("test", 2)) == 3
    with pytest.raises(InputError, match=r"split\.csv has no picture of class 1 to train with: add some, or number"):
        classes(("train", 0), ("val", 2), ("test", 1))
    with pytest.raises(InputError, match=r"no picture of class 1 to train with, nor of 2 other classes: add"):
        classes(("train", 0), ("val", 2), ("test", 4))
    with pytest.raises(InputError, match=r"split\.csv has only one class \('0'\)"):
        classes(("train", 0), ("val", 0), ("test", 0))


def test_flowers_are_split_as_their_table_says(tmp_path):
    ensure("flowers102", tmp_path, workers=1, show=False, scale=0.02)
    files = Files(
        root=str(tmp_path),
        annotations=["data/flowers102/annots/split.csv"],
        image_roots={"flowers102": "data/flowers102/images"},
    )
    with (tmp_path / "data/flowers102/annots/split.csv").open() as file:
        rows = list(csv.DictReader(file))
    config = configured("classification", files, splits=["train", "val"], augmentation=STILL)
    reader = make_reader(config, ImageShape(64, 8), None)
    data = ImagesToClassify(LabelledSet(files, ["test"]), ImageShape(64, 8))
    check_files(data)
    assert len(reader.source) == sum(row["split"] in ("train", "val") for row in rows)
    labels = [batch["label"] for batch in evaluation_batches(data, 10)]
    assert torch.cat(labels).tolist() == [int(row["class"]) for row in rows if row["split"] == "test"]
    assert same_classes(reader.source, data.source) == 24
    batch = Side("images", reader, 5, seed=0)[0].batch
    assert batch["image"].shape == (5, 3, 64, 64)


def test_cifar_with_its_official_splits(cifar):
    folder, batches, test_pixels = cifar
    files = Files(folder=str(folder), torchvision="cifar10")
    training, test = (LabelledSet(files, [split]).open() for split in ("train", "test"))
    assert (len(training), len(test)) == (50, 10)
    assert same_classes(training, test) == 10
    image, label = training.read(23)
    assert label == 3
    red, green, blue = batches[2][3].reshape(3, 32, 32)
    assert np.array_equal(np.asarray(image), np.stack([red, green, blue], axis=-1))
    assert np.array_equal(np.asarray(test.read(9)[0])[:, :, 0], test_pixels[9].reshape(3, 32, 32)[0])
    assert training.name(23) == "cifar10 train 23" and training.file(23) is None
    config = configured("classification", files, splits=["train"], augmentation=RECIPE)
    batch = Side("images", make_reader(config, SHAPE, None), 8, seed=0)[0].batch
    assert batch["image"].shape == (8, 3, 16, 16)
    data = ImagesToClassify(LabelledSet(files, ["test"]), SHAPE)
    assert [b["label"].tolist() for b in evaluation_batches(data, 6)] == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9]]


def test_without_a_network_places_are_named(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise URLError("Temporary failure in name resolution")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", offline)
    for name, folder in (("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")):
        with pytest.raises(InputError, match=rf"cannot be downloaded .*name resolution.*{folder} exists"):
            LabelledSet(Files(root=str(tmp_path), torchvision=name), ["train"]).open()
        assert (tmp_path / "data" / name).is_dir()


def test_it_is_downloaded_when_it_is_not_there(cifar, tmp_path, monkeypatch):
    """The archive is fetched and unpacked where the configuration says."""
    folder, *_ = cifar
    asked = []

    def download(url, root, **kwargs):
        asked.append((url, str(root)))
        (folder / "cifar-10-batches-py").rename(tmp_path / "new" / "cifar-10-batches-py")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    source = LabelledSet(Files(folder=str(tmp_path / "new"), torchvision="cifar10"), ["test"]).open()
    assert len(source) == 10 and asked == [(torchvision.datasets.CIFAR10.url, str(tmp_path / "new"))]


@pytest.mark.parametrize(
    ("name", "splits", "message"),
    [
        ("cifar1", ["train"], r"unknown torchvision set 'cifar1' \(did you mean 'cifar10'"),
        ("cifar10", [], r"ask for one of them, not \[\]"),
        ("cifar10", ["val"], r"ask for one of them, not \[val\]"),
        ("cifar10", ["train", "test"], r"not \[train, test\]"),
    ],
)
def test_what_cifar_has_not(name, splits, message):
    with pytest.raises(InputError, match=message):
        LabelledSet(Files(torchvision=name), splits).open()
