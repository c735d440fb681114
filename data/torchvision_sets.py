"""Labelled sets that torchvision reads and downloads: CIFAR, Flowers102, DTD, Food101, Oxford-IIIT Pet.

`files: {torchvision: dtd}` with `splits: [train, val]`. A set is a record of `SETS`; nothing else knows one by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from console.errors import InputError, nearest
from console.progress import console
from data.sources import Files, LabelledSource
from storage.hashing import hash_json
from storage.lock import locked

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset

ROBOTS = "https://www.robots.ox.ac.uk/~vgg/data"


@dataclass(frozen=True)
class TorchvisionSet:
    """How a data set of torchvision is constructed, and the attributes that it then has.

    splits: name -> the arguments that choose it. unpacked: the folder that `archives` become. pictures, labels:
    attributes of the class, those that torchvision documents where it has some. in_memory: pictures are pixels
    [n, h, w, 3] uint8, else files. listed: names of the files that say what is in the set, as attributes list them;
    of sets without, the list of pictures says it.
    """

    name: str
    splits: dict[str, dict[str, Any]]
    unpacked: str
    archives: str
    pictures: str = "_image_files"
    labels: str = "_labels"
    in_memory: bool = False
    listed: tuple[str, ...] = field(default=())


def _by_name(*splits: str) -> dict[str, dict[str, Any]]:
    return {split: {"split": split} for split in splits}


def _cifar(name: str, unpacked: str, archive: str) -> TorchvisionSet:
    splits = {"train": {"train": True}, "test": {"train": False}}
    address = f"https://www.cs.toronto.edu/~kriz/{archive}"
    return TorchvisionSet(name, splits, unpacked, address, "data", "targets", True, ("train_list", "test_list"))


SETS = {
    "cifar10": _cifar("CIFAR10", "cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "cifar100": _cifar("CIFAR100", "cifar-100-python", "cifar-100-python.tar.gz"),
    "flowers102": TorchvisionSet(
        "Flowers102",
        _by_name("train", "val", "test"),
        "flowers-102/jpg",
        f"{ROBOTS}/flowers/102/102flowers.tgz (with imagelabels.mat and setid.mat, which go next to jpg)",
    ),
    "dtd": TorchvisionSet(
        "DTD", _by_name("train", "val", "test"), "dtd/dtd/images", f"{ROBOTS}/dtd/download/dtd-r1.0.1.tar.gz"
    ),
    "food101": TorchvisionSet(
        "Food101",
        _by_name("train", "test"),
        "food-101/images",
        "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
    ),
    "pets": TorchvisionSet(
        "OxfordIIITPet",
        _by_name("trainval", "test"),
        "oxford-iiit-pet/images",
        f"{ROBOTS}/pets/data/images.tar.gz (with annotations.tar.gz, which goes next to images)",
        pictures="_images",
    ),
}
"""Name in the configuration -> the set."""


class FromTorchvision(LabelledSource):
    """Splits of one of SETS, joined in the order asked for; fetched by torchvision on first use.

    files.folder (default: data/<name>) is where the files lie. Labels count from 0, as torchvision has them.
    """

    def __init__(self, files: Files, splits: list[str]):
        super().__init__(files.ground)
        name = files.torchvision
        if name not in SETS:
            raise InputError(f"unknown torchvision set '{name}'{nearest(name, SETS)}: choose one of {', '.join(SETS)}")
        known = SETS[name]
        mixed = "test" in splits and len(splits) > 1  # then it would be no test
        if not splits or mixed or len(set(splits)) < len(splits) or not known.splits.keys() >= set(splits):
            more = ", or for those of training together" if len(known.splits) > 2 else ""
            raise InputError(
                f"{name} has the splits {', '.join(known.splits)}: ask for one of them{more}, not [{', '.join(splits)}]"
            )
        files = files.resolved()
        folder = Path(files.path(files.folder or f"data/{name}"))
        self.place = f"{name} in {folder}"
        self._pixels: list[Any] = []
        for split in splits:
            data = _fetched(name, folder, split)
            if self.classes and self.classes != data.classes:
                raise InputError(f"the splits of {self.place} have different classes: fetch it again")
            self.classes = list(data.classes)
            pictures, labels = getattr(data, known.pictures), getattr(data, known.labels)
            names = map(str, pictures)
            if known.in_memory:
                self._pixels += list(pictures)
                names = (f"{name} {split} {index}" for index in range(len(labels)))
            self._images += zip(names, map(int, labels), strict=True)
        self.paths = [
            str(folder / data.base_folder / file) for listed in known.listed for file, _ in getattr(data, listed)
        ]
        if not self.paths:
            self.listing = hash_json(self._images)

    def file(self, index: int) -> str | None:
        """The image file; None where the pictures are in memory."""
        return None if self._pixels else self.name(index)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image and its label; ImageError when its file cannot be read."""
        if not self._pixels:
            return super().read(index)
        return Image.fromarray(self._pixels[index]), self.known(index)


def _fetched(name: str, folder: Path, split: str) -> VisionDataset:
    """torchvision's data set, downloaded if it is not there; checksums, where it has any, are compared either way."""
    import torchvision  # here: most labelled images do without its data sets

    known = SETS[name]
    make, chosen = getattr(torchvision.datasets, known.name), known.splits[split]
    try:
        return make(folder, **chosen)
    except (OSError, RuntimeError):  # not there, or not whole
        pass
    with locked(folder / ".lock", f"download {name} into {folder}"):  # by one of several processes
        try:
            console.print(f"looking for {name} at {known.archives}")
            return make(folder, **chosen, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(
                f"{name} is not in {folder} and cannot be downloaded ({reason}): fetch {known.archives} where there is "
                f"a network and unpack it there, so that {folder / known.unpacked} exists"
            ) from error
