"""Labelled images from tables as Flowers102 lays them out, and what is said about broken ones."""

import csv

import pytest
from PIL import Image

from console.errors import InputError
from data.images import ImageError
from data.labelled import LabelledImages, LabelledSet, LabelledTable
from data.miniworld import ensure
from data.sources import Files

ROWS = [("a.png", "train", "1"), ("b.png", "val", "0"), ("c.png", "test", "1"), ("d.png", "train", "0")]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name, _, label in ROWS:
        Image.new("RGB", (4, 4), (100 * int(label), 0, 0)).save(tmp_path / "images" / name)
    write(tmp_path, ROWS)
    return tmp_path


def write(folder, rows, header=("filename", "split", "class")):
    with (folder / "split.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def table(folder, *splits):
    files = Files(root=str(folder), annotations=["split.csv"], image_roots={"flowers102": "images"})
    return LabelledSet(files, list(splits)).open()


def test_rows_of_the_splits_in_order(folder):
    for splits, names, labels in (
        ((), "abcd", [1, 0, 1, 0]),
        (("train", "val"), "abd", [1, 0, 0]),
        (("test",), "c", [1]),
    ):
        found = table(folder, *splits)
        assert isinstance(found, LabelledTable)
        assert [found.name(i) for i in range(len(found))] == [str(folder / "images" / f"{n}.png") for n in names]
        assert [found.read(i)[1] for i in range(len(found))] == labels
        assert [found.read(i)[0].getpixel((0, 0))[0] for i in range(len(found))] == [100 * n for n in labels]
    (folder / "images" / "c.png").unlink()
    with pytest.raises(ImageError, match=r"c\.png \(missing\)"):
        table(folder, "test").read(0)


def test_class_folders_are_opened_as_such(folder):
    (folder / "classes" / "n1").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "classes" / "n1" / "x.png")
    assert isinstance(LabelledSet(Files(folder=str(folder / "classes"))).open(), LabelledImages)


@pytest.mark.parametrize(
    ("rows", "header", "splits", "message"),
    [
        (ROWS, ("filename", "split", "label"), (), r"lacks the column 'class': it must have filename, split, class"),
        (
            ROWS,
            ("filename", "split", "class"),
            ("tset",),
            r"no images of the split 'tset' \(it has: train, val, test\)",
        ),
        ([], ("filename", "split", "class"), (), "has no images"),
        ([("a.png", "train", "rose")], ("filename", "split", "class"), (), "line 2: the class must be a whole number"),
        ([("a.png",)], ("filename", "split", "class"), (), "line 2: the class must be a whole number, not ''"),
    ],
)
def test_broken_tables(folder, rows, header, splits, message):
    write(folder, rows, header)
    with pytest.raises(InputError, match=message):
        table(folder, *splits)


def test_files_that_are_not_there(folder):
    (folder / "split.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not a CSV table"):
        table(folder)
    (folder / "split.csv").unlink()
    with pytest.raises(InputError, match="cannot read the table"):
        table(folder)
    with pytest.raises(InputError, match="one table and one image root"):
        LabelledSet(Files(annotations=["a.csv", "b.csv"])).open()


def test_the_mini_world_writes_such_a_table(tmp_path):
    ensure("flowers102", tmp_path, workers=1, show=False, scale=0.04)
    files = Files(
        root=str(tmp_path),
        annotations=["data/flowers102/annots/split.csv"],
        image_roots={"flowers102": "data/flowers102/images"},
    )
    training, test = LabelledSet(files, ["train", "val"]).open(), LabelledSet(files, ["test"]).open()
    assert (len(training), len(test)) == (72, 48)
    assert {training.read(i)[1] for i in range(72)} == {test.read(i)[1] for i in range(48)} == set(range(24))
