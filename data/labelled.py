"""Labelled images as classification data sets lay them out: class folders (ImageNet), a table (Flowers102), CIFAR."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from console.errors import InputError, explain_os_error
from data.images import read_image
from data.sources import Files, LabelledImages

if TYPE_CHECKING:
    from data.cifar import Cifar

COLUMNS = ("filename", "split", "class")


@dataclass(frozen=True)
class LabelledSet:
    """files: a `folder` of class folders, a table in `annotations` with a folder in `image_roots`, or `torchvision`.

    splits: rows of the table that count (none: all); of a folder, the one subfolder that holds the class folders (none:
    they lie in the folder itself); of torchvision's sets, `train` or `test`.
    """

    files: Files
    splits: list[str] = field(default_factory=list)

    def open(self) -> LabelledImages | LabelledTable | Cifar:
        """The images with their labels; InputError where files are missing or broken."""
        if self.files.torchvision:
            from data.cifar import Cifar

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


class LabelledTable:
    """Images in one folder, their split and class in a CSV: `filename,split,class`, classes from 0.

    classes: the numbers of the classes as text, up to the highest of any split.
    """

    def __init__(self, files: Files, splits: list[str]):
        if len(files.annotations) != 1 or len(files.image_roots) != 1:
            raise InputError("labelled images need a folder of class folders, or one table and one image root")
        files = files.resolved()
        table, root = Path(files.path(files.annotations[0])), Path(files.path(*files.image_roots.values()))
        self.paths = [str(table)]
        self._ground = files.ground
        self._images: list[tuple[str, int]] = []
        seen: dict[str, None] = {}  # a set that remembers the order
        highest = -1
        for line, row in enumerate(_rows(table), start=2):
            seen[row["split"]] = None
            if not row["class"].isdecimal():
                raise InputError(f"{table}, line {line}: the class must be a whole number, not {row['class']!r}")
            highest = max(highest, int(row["class"]))
            if not splits or row["split"] in splits:
                self._images.append((str(root / row["filename"]), int(row["class"])))
        self.classes = [str(label) for label in range(highest + 1)]
        absent = [split for split in splits if split not in seen]
        if absent or not self._images:
            raise InputError(
                f"{table} has no images of the split '{(absent or ['any'])[0]}' (it has: {', '.join(seen)})"
            )

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """The image's path."""
        return self._images[index][0]

    file = name

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image and its label; ImageError when it cannot be read."""
        path, label = self._images[index]
        return read_image(path, ground=self._ground), label


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
