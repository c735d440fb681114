"""Where samples come from: annotation files, shards and class folders, as one numbered list of records."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from console.errors import InputError, explain_os_error
from console.progress import say_once
from data.images import IMAGE_SUFFIXES, ground_colour, is_hidden, read_image
from data.records import Record, check_fields, is_caption, is_elements, is_text, join_root, read_json_list
from data.shards import ShardSample, expand_shards, index_shard
from storage.hashing import hash_json

NAMED = 3
"""Shards whose losses are told one by one."""


@dataclass(frozen=True)
class Files:
    """annotations: JSON files. image_roots: data set name -> folder that its image paths are below.

    root: a folder before every relative path (annotations, shards, image roots); the working directory by default.
    shards: webdataset patterns, pairs only. miniworld: parts of the mini world that the files belong to; they are
    generated on first use and `root` becomes the world's folder. folder: a folder of class folders, labelled images
    only. torchvision: a labelled set that torchvision downloads into `folder` (data/cifar.py). ground: the colour that
    shows through transparent pixels (a name, or as #7f7f7f; none: white).
    """

    annotations: list[str] = field(default_factory=list)
    image_roots: dict[str, str] = field(default_factory=dict)
    root: str = ""
    shards: list[str] = field(default_factory=list)
    miniworld: list[str] = field(default_factory=list)
    folder: str = ""
    torchvision: str = ""
    ground: str = ""  # empty: so that runs from before there was a choice are the same runs

    def __post_init__(self) -> None:
        ground_colour(self.ground)

    def resolved(self) -> Files:
        """These files with the mini world in place, where they lie in it."""
        if not self.miniworld:
            return self
        from data.miniworld import ensure

        roots = [ensure(part) for part in self.miniworld]
        return dataclasses.replace(self, root=str(roots[0]), miniworld=[])

    def path(self, name: str) -> str:
        """`name` below `root`, unless it is absolute."""
        return str(Path(self.root) / name) if self.root else name


class Pairs:
    """Images with captions: CC3M, SBU, COCO and VG dense captions, from JSON files and shards together."""

    def __init__(self, files: Files):
        files = files.resolved()
        self._records: list[Record | ShardSample] = []
        self._ground = files.ground
        self.left_out: list[str] = []  # of the shards, in words
        self.paths = [files.path(name) for name in files.annotations]
        for path in self.paths:
            records = read_json_list(path)
            check_fields(records, path, {"image": is_text, "caption": is_caption})
            for index, record in enumerate(records):
                root = _root_of(record, files.image_roots, path, index)
                record["image"] = join_root(files.path(root) if root else files.root, record["image"])
            self._records += records
        for pattern in files.shards:
            for shard in expand_shards(files.path(pattern)):
                self.paths.append(shard)
                samples, left_out = index_shard(shard)
                self._records += samples
                if left_out:
                    self.left_out.append(f"{shard}: {len(samples)} pairs are read; left out are {left_out}")
        if not self._records:
            raise InputError("no annotation file and no shard is given: name at least one in the configuration")
        for told in self.left_out[:NAMED]:
            say_once(told)
        if len(self.left_out) > NAMED:
            say_once(f"of {len(self.left_out) - NAMED} more shards something is left out (last: {self.left_out[-1]})")

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """The image's path, or shard and key."""
        record = self._records[index]
        return f"{record.shard}:{record.key}" if isinstance(record, ShardSample) else record["image"]

    def file(self, index: int) -> str | None:
        """The image file, None where it lies in a shard."""
        record = self._records[index]
        return None if isinstance(record, ShardSample) else record["image"]

    def record(self, index: int) -> Record | None:
        """The record of the annotation file with all its fields, None where the pair lies in a shard."""
        record = self._records[index]
        return None if isinstance(record, ShardSample) else record

    def caption(self, index: int) -> str | list[str]:
        """The caption or captions alone."""
        record = self._records[index]
        return record.read()[1] if isinstance(record, ShardSample) else record["caption"]

    def read(self, index: int) -> tuple[Image.Image, str | list[str]]:
        """The image and its caption or captions; ImageError when the image cannot be read."""
        record = self._records[index]
        if isinstance(record, ShardSample):
            image, caption = record.read()
            return read_image(image, self.name(index), self._ground), caption
        return read_image(record["image"], ground=self._ground), record["caption"]


class RegionRecords:
    """Images with described boxes: vg_regions.json. Paths are joined with `root` only."""

    def __init__(self, files: Files):
        files = files.resolved()
        self._records: list[Record] = []
        self._ground = files.ground
        self.paths = [files.path(name) for name in files.annotations]
        for path in self.paths:
            records = read_json_list(path)
            check_fields(records, path, {"image": is_text, "elems": is_elements})
            for record in records:
                record["image"] = join_root(files.root, record["image"])
            self._records += records
        if not self._records:
            raise InputError("no region file is given: name at least one in the configuration")

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """The image's path."""
        return self._records[index]["image"]

    file = name

    def read(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        """The image and its record; ImageError when the image cannot be read."""
        return read_image(self._records[index]["image"], ground=self._ground), self._records[index]


class LabelledImages:
    """Images in one folder a class, as ImageNet's `train`; labels are the positions of the sorted folder names."""

    def __init__(self, files: Files):
        files = files.resolved()
        folder = Path(files.path(files.folder))
        if not folder.is_dir():
            hint = "; python -m data.digits writes the digits" if "sklearn_digits" in folder.parts else ""
            raise InputError(f"there is no folder {folder}: unpack the images there, one folder a class{hint}")
        self._ground = files.ground
        self.paths: list[str] = []
        self._images: list[tuple[str, int]] = []
        self.classes, ignored = _listed(folder, folders=True)
        if not self.classes:
            raise InputError(f"{folder} has no class folders: unpack the images there, one folder a class")
        for label, name in enumerate(self.classes):
            found, others = _listed(folder / name, folders=False)
            if not found:
                what = f" ({len(others)} things in it are none, first: {others[0][1]})" if others else ""
                raise InputError(f"the class folder {folder / name} has no images{what}: fill it, or take it away")
            self._images += [(str(folder / name / file), label) for file in found]
            ignored += others
        self.listing = hash_json(self._images)
        self.left_out = []
        for why in dict.fromkeys(why for why, _ in ignored):
            names = [name for reason, name in ignored if reason == why]
            self.left_out.append(f"{len(names)} {why} (first: {names[0]})")
        if self.left_out:
            say_once(f"in {folder} are left out: {', '.join(self.left_out)}")

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """The image's path."""
        return self._images[index][0]

    def file(self, index: int) -> None:
        """The folder was just listed: the files are there."""
        return

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image and its label; ImageError when it cannot be read."""
        path, label = self._images[index]
        return read_image(path, ground=self._ground), label


def _listed(folder: Path, folders: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """The names of the class folders, or of the images, of a folder, sorted; and why each of the others is not one.

    InputError where the folder cannot be read, or has a link to nothing for a class folder: the labels would shift.
    """
    taken, others = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if is_hidden(entry.name):
                    others.append(("hidden or system files and folders", entry.path))
                elif folders and not Path(entry).exists():
                    raise InputError(f"{entry.path} is a link to nothing, and labels count the folders: mend it")
                elif entry.is_dir() != folders:
                    kind = "files beside the class folders" if folders else "folders inside of class folders"
                    others.append((kind, entry.path))
                elif not folders and Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES:
                    others.append(("files without the ending of an image", entry.path))
                else:
                    taken.append(entry.name)
    except OSError as error:
        raise explain_os_error(error, f"list the folder {folder}") from error
    return taken, others


def _root_of(record: Record, roots: dict[str, str], path: str, index: int) -> str:
    """The image root of the record's data set; without roots, paths are used as they are."""
    if not roots:
        return ""
    dataset = record.get("dataset", next(iter(roots)) if len(roots) == 1 else None)
    if dataset not in roots:
        raise InputError(f"{path}: record {index} has dataset {dataset!r}, but image_roots knows {', '.join(roots)}")
    return roots[dataset]
