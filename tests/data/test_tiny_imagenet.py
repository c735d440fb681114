"""Tiny-ImageNet as it is unpacked: the class numbers of its two splits, and what is said of damaged files."""

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from console.errors import InputError
from data.classification import ImagesToClassify, same_classes
from data.evaluation_batches import check_files
from data.labelled import LabelledSet
from data.sources import Files
from models.base import ImageShape

WORDS = {"n03": "school bus", "n01": "goldfish, Carassius auratus", "n99": "not among them", "n02": "tailed frog"}
TRAIN = {"n02": 2, "n01": 3, "n03": 1}
VAL = [("val_0.JPEG", "n03"), ("val_1.JPEG", "n01"), ("val_2.JPEG", "n01"), ("val_10.JPEG", "n02")]


@pytest.fixture
def folder(tmp_path):
    """The layout with its boxes and its unlabelled test pictures; the red of a picture is its class number's."""
    home = tmp_path / "tiny-imagenet-200"
    (home / "test" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(home / "test" / "images" / "test_0.JPEG")
    (home / "wnids.txt").write_text("n02\nn01\nn03\n")
    (home / "words.txt").write_text("".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items()))

    def draw(path, wnid):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (80 * (int(wnid[-1]) - 1), 0, 0)).save(path)

    for wnid, count in TRAIN.items():
        for number in range(count):
            draw(home / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", wnid)
        (home / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t7\t7\n")
    for name, wnid in VAL:
        draw(home / "val" / "images" / name, wnid)
    (home / "val" / "val_annotations.txt").write_text("".join(f"{name}\t{wnid}\t0\t0\t7\t7\n" for name, wnid in VAL))
    return home


def opened(folder, *splits):
    return LabelledSet(Files(root=str(folder.parent), folder=folder.name), list(splits)).open()


def test_both_splits_count_the_classes_alike(folder, capsys):
    training, test = opened(folder, "train"), opened(folder, "test")
    assert ImageFolder(str(folder / "train")).samples == [(training.name(i), training.known(i)) for i in range(6)]
    assert [(test.name(i), test.known(i)) for i in range(4)] == [
        (str(folder / "val" / "images" / name), int(wnid[-1]) - 1) for name, wnid in VAL
    ]
    for source in (training, test):
        for i in range(len(source)):
            image, label = source.read(i)
            assert image.getpixel((4, 4))[0] == pytest.approx(80 * label, abs=3)
    assert training.classes == test.classes == ["goldfish, Carassius auratus", "tailed frog", "school bus"]
    assert same_classes(training, test) == 3
    assert capsys.readouterr().err == ""  # boxes are no loss


def test_pictures_to_classify(folder):
    data = ImagesToClassify(
        LabelledSet(Files(folder=str(folder)), ["test"]), ImageShape(8, 4, mean=(0.0,) * 3, std=(1.0,) * 3)
    )
    check_files(data)
    assert [data[i][1] for i in range(4)] == [2, 0, 0, 1]
    (folder / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(InputError, match=r"1 of 4 evaluation images is missing \(first: .*val_1\.JPEG\)"):
        check_files(data)


def test_an_unnamed_class_has_its_number(folder):
    (folder / "words.txt").write_text("n01\tgoldfish\n")
    assert opened(folder, "test").classes == ["goldfish", "n02", "n03"]


@pytest.mark.parametrize("splits", [[], ["val"], ["validation"]])
def test_splits_that_there_are_not(folder, splits):
    with pytest.raises(InputError, match=r"is Tiny-ImageNet, with the splits train and test .*, not \["):
        opened(folder, *splits)


def spoil(folder, name, text):
    (folder / name).write_text(text) if text is not None else (folder / name).unlink()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("words.txt", None, r"cannot read .*words\.txt: no such file"),
        ("val/val_annotations.txt", "a.JPEG\tn04\t0", r"val_annotations\.txt, line 1: .*train has no class 'n04'"),
        ("val/val_annotations.txt", "a.JPEG\tn01\nb.JPEG\n", r"val_annotations\.txt, line 2: a name, a tab and"),
    ],
)
def test_damaged_files(folder, name, text, message):
    spoil(folder, name, text)
    with pytest.raises(InputError, match=message):
        opened(folder, "test")


def test_a_class_without_pictures(folder):
    (folder / "train" / "n02" / "images" / "n02_0.JPEG").unlink()
    (folder / "train" / "n02" / "images" / "n02_1.JPEG").unlink()
    with pytest.raises(InputError, match=r"the class folder .*n02 has no images"):
        opened(folder, "train")
