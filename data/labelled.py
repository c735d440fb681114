"""Labelled images as classification data sets lay them out: class folders (ImageNet), a table (Flowers102), CIFAR."""

from __future__ import annotations

import csv
import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from console.errors import InputError, explain_os_error, nearest
from console.progress import console, say_once
from console.words import agreed, counted
from data.images import IMAGE_SUFFIXES, is_hidden
from data.sources import Files, Source
from storage.hashing import hash_json
from storage.lock import locked

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

COLUMNS = ("filename", "split", "class")

CIFAR = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
"""Name in the configuration -> torchvision's class."""


class LabelledSource(Source):
    """Images with their class, a number from 0. classes: the names of the classes, by number."""

    classes: list[str]


@dataclass(frozen=True)
class LabelledSet:
    """files: a `folder` of class folders, a table in `annotations` with a folder in `image_roots`, or `torchvision`.

    splits: rows of the table that count (none: all); of a folder, the one subfolder that holds the class folders (none:
    they lie in the folder itself); of torchvision's sets, `train` or `test`.
    """

    files: Files
    splits: list[str] = field(default_factory=list)

    def open(self) -> LabelledSource:
        """The images with their labels; InputError where files are missing or broken."""
        if self.files.torchvision:
            return Cifar(self.files, self.splits)
        if not self.files.folder:
            return LabelledTable(self.files, self.splits)
        if len(self.splits) > 1:
            raise InputError(
                f"the image folder {self.files.folder} is asked for the splits {', '.join(self.splits)}, but a folder "
                "is read one split at a time: name one, or put the images of both into one folder"
            )
        folder = str(Path(self.files.folder, *self.splits))
        return LabelledImages(dataclasses.replace(self.files, folder=folder))


class LabelledImages(LabelledSource):
    """Images in one folder a class, as ImageNet's `train`; labels are the positions of the sorted folder names."""

    def __init__(self, files: Files):
        super().__init__(files.ground)
        files = files.resolved()
        folder = Path(files.path(files.folder))
        if not folder.is_dir():
            hint = "; python -m data.digits writes the digits" if "sklearn_digits" in folder.parts else ""
            raise InputError(f"there is no folder {folder}: unpack the images there, one folder a class{hint}")
        self.classes, ignored = _listed(folder, folders=True)
        if not self.classes:
            raise InputError(f"{folder} has no class folders: unpack the images there, one folder a class")
        for label, name in enumerate(self.classes):
            found, others = _listed(folder / name, folders=False)
            if not found:
                are = f"{counted(len(others), 'thing')} in it {agreed(len(others), 'is')} none"
                what = f" ({are}, first: {others[0][1]})" if others else ""
                raise InputError(f"the class folder {folder / name} has no images{what}: fill it, or take it away")
            self._images += [(str(folder / name / file), label) for file in found]
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
    """The names of the class folders, or of the images, of a folder, sorted; and of each other thing, what it is.

    That is a noun and what comes after it.

    InputError where the folder cannot be read, or has a link to nothing for a class folder: the labels would shift.
    """
    taken, others = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if is_hidden(entry.name):
                    others.append((("hidden or system entry", ""), entry.path))
                elif folders and not Path(entry).exists():
                    raise InputError(f"{entry.path} is a link to nothing, and labels count the folders: mend it")
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
        self.paths = [str(table)]
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


class Cifar(LabelledSource):
    """CIFAR-10 or -100 (Krizhevsky, 2009): a split, `train` or `test`, in memory, fetched by torchvision on first use.

    files.folder (default: data/<name>) is where the files lie.
    """

    def __init__(self, files: Files, splits: list[str]):
        super().__init__()
        name = files.torchvision
        if name not in CIFAR:
            raise InputError(
                f"unknown torchvision set '{name}'{nearest(name, CIFAR)}: choose one of {', '.join(CIFAR)}"
            )
        if len(splits) != 1 or splits[0] not in ("train", "test"):
            raise InputError(f"{name} has the splits train and test: ask for one of them, not [{', '.join(splits)}]")
        files = files.resolved()
        folder = Path(files.path(files.folder or f"data/{name}"))
        data = _fetched(name, folder, splits[0] == "train")
        self.classes, self._pixels = list(data.classes), data.data
        self.paths = [str(folder / data.base_folder / file) for file, _ in (*data.train_list, *data.test_list)]
        self._images = [(f"{name} {splits[0]} {index}", label) for index, label in enumerate(data.targets)]

    def file(self, index: int) -> None:
        """Images have no files of their own."""

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image of 32 x 32 pixels and its label."""
        return Image.fromarray(self._pixels[index]), self.known(index)


def _fetched(name: str, folder: Path, train: bool) -> CIFAR10:
    """torchvision's data set, downloaded if it is not there; its checksums are looked at either way."""
    import torchvision  # here: most labelled images do without its data sets

    make = getattr(torchvision.datasets, CIFAR[name])
    try:
        return make(folder, train=train)
    except RuntimeError:  # not there, or not whole
        pass
    with locked(folder / ".lock", f"download {name} into {folder}"):  # by one of several processes
        try:
            console.print(f"looking for {name} at {make.url}")
            return make(folder, train=train, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{name} is not in {folder} and cannot be downloaded ({reason}): fetch {make.url} where there is a "
                f"network and unpack it there, so that {folder / make.base_folder} exists"
            ) from error
