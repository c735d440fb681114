"""CIFAR-10 and CIFAR-100 with their official splits, fetched by torchvision on first use.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

from pathlib import Path

import torchvision
from PIL import Image

from console.errors import InputError, nearest
from console.progress import console
from data.sources import Files
from storage.lock import locked

SETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
"""Name in the configuration -> torchvision's class."""


class Cifar:
    """A split, `train` or `test`, all of it in memory; files.folder (default: data/<name>) is where the files lie."""

    def __init__(self, files: Files, splits: list[str]):
        name = files.torchvision
        if name not in SETS:
            raise InputError(f"unknown torchvision set '{name}'{nearest(name, SETS)}: choose one of {', '.join(SETS)}")
        if len(splits) != 1 or splits[0] not in ("train", "test"):
            raise InputError(f"{name} has the splits train and test: ask for one of them, not [{', '.join(splits)}]")
        files = files.resolved()
        folder = Path(files.path(files.folder or f"data/{name}"))
        data = _open(name, folder, splits[0] == "train")
        self.classes: list[str] = list(data.classes)
        self.paths = [str(folder / data.base_folder / file) for file, _ in (*data.train_list, *data.test_list)]
        self._name = f"{name} {splits[0]}"
        self._pixels, self._labels = data.data, data.targets

    def __len__(self) -> int:
        return len(self._labels)

    def name(self, index: int) -> str:
        """How to call the image."""
        return f"{self._name} {index}"

    def file(self, index: int) -> None:
        """Images have no files of their own."""
        return

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image of 32 x 32 pixels and its label."""
        return Image.fromarray(self._pixels[index]), self._labels[index]


def _open(name: str, folder: Path, train: bool) -> torchvision.datasets.CIFAR10:
    """torchvision's data set, downloaded if it is not there; its checksums are looked at either way."""
    make = getattr(torchvision.datasets, SETS[name])
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
