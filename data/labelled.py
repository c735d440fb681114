"""Labelled images as data sets lay them out: class folders (ImageNet), Tiny-ImageNet, a table, torchvision's sets."""

from __future__ import annotations

import csv
import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path

from console.errors import InputError, explain_os_error
from console.progress import say_once
from console.words import agreed, counted
from data.images import IMAGE_SUFFIXES, is_hidden
from data.sources import Files, LabelledSource
from data.torchvision_sets import FromTorchvision
from storage.hashing import hash_json

COLUMNS = ("filename", "split", "class")

ANNOTATED = Path("val", "val_annotations.txt")
"""The file by which Tiny-ImageNet is recognised: the class of each of its test pictures."""


@dataclass(frozen=True)
class LabelledSet:
    """files: a `folder` of class folders, a table in `annotations` with a folder in `image_roots`, or `torchvision`.

    splits: rows of the table that count (none: all); of a folder, the one subfolder that holds the class folders (none:
    they lie in the folder itself); of torchvision's sets, its own (`SETS` in data/torchvision_sets.py). A folder with
    Tiny-ImageNet's annotations is read as that: `train`, or `test`, which is its `val`.
    """

    files: Files
    splits: list[str] = field(default_factory=list)

    def open(self) -> LabelledSource:
        """The images with their labels; InputError where files are missing or broken."""
        if self.files.torchvision:
            return FromTorchvision(self.files, self.splits)
        if not self.files.folder:
            return LabelledTable(self.files, self.splits)
        if len(self.splits) > 1:
            raise InputError(
                f"the image folder {self.files.folder} cannot be read with the splits {', '.join(self.splits)}: name "
                "one split, or merge their folders"
            )
        files = self.files.resolved()
        if Path(files.path(files.folder), ANNOTATED).is_file():
            return tiny_imagenet(files, self.splits)
        return LabelledImages(dataclasses.replace(files, folder=str(Path(files.folder, *self.splits))))


class LabelledImages(LabelledSource):
    """Images in one folder per class, as ImageNet's `train`; labels are the positions of the sorted folder names."""

    def __init__(self, files: Files, inside: str = ""):
        """inside: a folder in each class folder that has the images; none: they lie in the class folder itself."""
        super().__init__(files.ground)
        files = files.resolved()
        folder = Path(files.path(files.folder))
        if not folder.is_dir():
            hint = "; python -m data.digits writes the digits" if "sklearn_digits" in folder.parts else ""
            raise InputError(f"there is no folder {folder}: unpack the images there, one folder per class{hint}")
        self.place = str(folder)
        self.classes, ignored = _listed(folder, folders=True)
        if not self.classes:
            raise InputError(f"{folder} has no class folders: unpack the images there, one folder per class")
        for label, name in enumerate(self.classes):
            found, others = _listed(folder / name / inside, folders=False)
            if not found:
                are = f"{counted(len(others), 'thing')} in it {agreed(len(others), 'is')} none"
                what = f" ({are}, first: {others[0][1]})" if others else ""
                raise InputError(f"the class folder {folder / name} has no images{what}: add images, or remove it")
            self._images += [(str(folder / name / inside / file), label) for file in found]
            ignored += others
        self.listing = hash_json(self._images)
        for why in dict.fromkeys(why for why, _ in ignored):
            names = [name for reason, name in ignored if reason == why]
            self.left_out.append(f"{counted(len(names), why[0])}{why[1]} (first: {names[0]})")
        if self.left_out:
            say_once(f"in {folder} are left out: {', '.join(self.left_out)}")

    def file(self, index: int) -> None:
        """The folder was just listed: the files are there."""


def _listed(folder: Path, folders: bool) -> tuple[list[str], list[tuple[tuple[str, str], str]]]:
    """The sorted names of the class folders, or of the images, in a folder; and the other entries, with their kind.

    A kind is a noun and the words after it, for `counted`.

    InputError where the folder cannot be read, or has a link to nothing for a class folder: the labels would shift.
    """
    taken, others = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if is_hidden(entry.name):
                    others.append((("hidden or system entry", ""), entry.path))
                elif folders and not Path(entry).exists():
                    raise InputError(
                        f"{entry.path} is a link to nothing, and labels depend on the folders: fix the link"
                    )
                elif entry.is_dir() != folders:
                    kind = ("file", " next to the class folders") if folders else ("folder", " inside of class folders")
                    others.append((kind, entry.path))
                elif not folders and Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
                    others.append((("file", " without the ending of an image"), entry.path))
                else:
                    taken.append(entry.name)
    except OSError as error:
        raise explain_os_error(error, f"list the folder {folder}") from error
    return taken, others


def tiny_imagenet(files: Files, splits: list[str]) -> LabelledSource:
    """Tiny-ImageNet as it is unpacked: train/<wnid>/images/*, and val/images/*, with a text file of their wnids.

    Labels of both splits are the positions of the sorted wnids of `train`; classes are called as words.txt has them.
    """
    folder = Path(files.path(files.folder))
    if splits not in (["train"], ["test"]):
        raise InputError(
            f"{folder} is Tiny-ImageNet, with the splits train and test (its val, whose classes are known): ask for "
            f"one of them, not [{', '.join(splits)}]"
        )
    wnids, _ = _listed(folder / "train", folders=True)
    if splits == ["train"]:
        made = LabelledImages(dataclasses.replace(files, folder=str(Path(files.folder, "train"))), inside="images")
    else:
        made = TinyImageNetTest(files, folder, wnids)
    words = dict(fields[:2] for fields in _fields(folder / "words.txt"))
    made.classes = [words.get(wnid, wnid) for wnid in wnids]
    return made


class TinyImageNetTest(LabelledSource):
    """The pictures of `val`, whose lines are: file, wnid, and a box, which is not read."""

    def __init__(self, files: Files, folder: Path, wnids: list[str]):
        super().__init__(files.ground)
        table = folder / ANNOTATED
        self.paths, self.place = [str(table)], str(table)
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        for line, (name, wnid, *_) in enumerate(_fields(table), start=1):
            if wnid not in labels:
                raise InputError(f"{table}, line {line}: {folder / 'train'} has no class '{wnid}': unpack both again")
            self._images.append((str(table.parent / "images" / name), labels[wnid]))


def _fields(table: Path) -> list[list[str]]:
    """The fields of a text file, divided by tabs, two at least a line."""
    try:
        lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise explain_os_error(error, f"read {table}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{table} is not UTF-8 text: unpack it again") from error
    for number, fields in enumerate(lines, start=1):
        if len(fields) < 2:
            raise InputError(f"{table}, line {number}: a name, a tab and what it is are needed: unpack it again")
    return lines


class LabelledTable(LabelledSource):
    """Images in one folder, their split and class in a CSV: `filename,split,class`, classes from 0.

    classes: the numbers of the classes as text, up to the highest of any split.
    """

    def __init__(self, files: Files, splits: list[str]):
        super().__init__(files.ground)
        if len(files.annotations) != 1 or len(files.image_roots) != 1:
            raise InputError("labelled images need a folder of class folders, or one table and one image root")
        files = files.resolved()
        table, root = Path(files.path(files.annotations[0])), Path(files.path(*files.image_roots.values()))
        self.paths, self.place = [str(table)], str(table)
        rows = _rows(table)
        for line, row in enumerate(rows, start=2):
            if not row["class"].isdecimal():
                raise InputError(f"{table}, line {line}: the class must be a whole number, not {row['class']!r}")
            if not splits or row["split"] in splits:
                self._images.append((str(root / row["filename"]), int(row["class"])))
        self.classes = [str(label) for label in range(1 + max((int(row["class"]) for row in rows), default=-1))]
        there = dict.fromkeys(row["split"] for row in rows)
        absent = [split for split in splits if split not in there]
        if absent or not self._images:
            raise InputError(
                f"{table} has no images of the split '{(absent or ['any'])[0]}' (it has: {', '.join(there)})"
            )


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{table} lacks the column '{missing[0]}': it must have {', '.join(COLUMNS)}")
            return [{column: row[column] or "" for column in COLUMNS} for row in reader]
    except OSError as error:
        raise explain_os_error(error, f"read the table {table}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{table} is not a CSV table in UTF-8: fetch or write it again") from error
