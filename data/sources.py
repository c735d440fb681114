"""Sources of samples: annotation files and shards as one numbered list of images with their records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from console.errors import InputError
from console.progress import say_once
from console.words import counted
from data.captioned import folder_pairs, saved_pairs, with_captions
from data.images import ground_colour, read_image
from data.records import (
    Checks,
    Record,
    check_fields,
    check_record,
    is_caption,
    is_elements,
    is_text,
    join_root,
    read_json_list,
)
from data.shards import expand_shards, index_shard
from storage.hashing import hash_json

NAMED = 3
"""Number of sources whose left-out contents are reported one by one."""


@dataclass(frozen=True)
class Files:
    """Where the files of one side or split lie; which keys count depends on what reads them."""

    annotations: list[str] = field(default_factory=list)  # JSON files; of labelled images one table
    image_roots: dict[str, str] = field(default_factory=dict)  # data set -> folder that its image paths are below
    root: str = ""  # prepended to relative paths; default: the working directory
    shards: list[str] = field(default_factory=list)  # webdataset patterns, pairs only
    miniworld: list[str] = field(default_factory=list)  # parts that are drawn on first use; `root` is then the world
    saved: list[str] = field(default_factory=list)  # data sets of Hugging Face on disk, or parquet files; pairs only
    folder: str = ""  # of class folders; of pairs: of pictures with text files
    torchvision: str = ""  # a labelled set that torchvision downloads into `folder`
    ground: str = ""  # colour behind transparent pixels: a name, or such as #7f7f7f; empty: white

    def __post_init__(self) -> None:
        ground_colour(self.ground)

    def resolved(self) -> Files:
        """These files, with the parts of the mini world drawn and as `root`, if they name any."""
        if not self.miniworld:
            return self
        from data.miniworld import ensure

        roots = [ensure(part) for part in self.miniworld]
        return dataclasses.replace(self, root=str(roots[0]), miniworld=[])

    def path(self, name: str) -> str:
        """`name` below `root`, unless it is absolute."""
        return str(Path(self.root) / name) if self.root else name

    def image(self, image: str, dataset: str | None, where: str) -> str:
        """The path of an image below the folder of its data set; without image roots paths are used as they are."""
        if not self.image_roots:
            return join_root(self.root, image)
        if not isinstance(dataset, str) or dataset not in self.image_roots:
            raise InputError(f"{where} has dataset {dataset!r}, but image_roots has {', '.join(self.image_roots)}")
        return join_root(self.path(self.image_roots[dataset]), image)


class Source:
    """A numbered list of images, each with its annotation: a record, a caption, a class.

    paths: files that it was made from. left_out: descriptions of the contents that are not read. listing: hash of the
    images, where no file lists them.
    """

    def __init__(self, ground: str = "") -> None:
        self.paths: list[str] = []
        self.left_out: list[str] = []
        self.listing = ""
        self.ground = ground
        self._images: list[Any] = []  # (path, annotation), unless a subclass has another form

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """The image's path, or how else to call it."""
        return self._images[index][0]

    def file(self, index: int) -> str | tuple[str, ...] | None:
        """The image file (both of a pair) that must exist; None where none needs a check."""
        return self.name(index)

    def known(self, index: int) -> Any:
        """The annotation of the image."""
        return self._images[index][1]

    def read(self, index: int) -> tuple[Image.Image, Any]:
        """The image and its annotation; ImageError when the image cannot be read."""
        return read_image(self.name(index), ground=self.ground), self.known(index)


class LabelledSource(Source):
    """Images with their class, a number from 0.

    classes: the names of the classes, by number. place: what it was made from, for messages.
    """

    def __init__(self, ground: str = "") -> None:
        super().__init__(ground)
        self.classes: list[str] = []
        self.place = ""


class Records(Source):
    """Records of annotation files; their `image` becomes the path that `place` gives for (record, where it stands)."""

    def __init__(self, files: Files, checks: Checks, place: Callable[[Record, str], str]):
        super().__init__(files.ground)
        for path in map(files.path, files.annotations):
            self.paths.append(path)
            for index, record in enumerate(self._prepared(read_json_list(path), path)):
                if record is not None:
                    where = f"{path}: record {index}"
                    check_record(record, where, checks)
                    record["image"] = place(record, where)
                    self._images.append(record)

    def name(self, index: int) -> str:
        """The image's path."""
        return self._images[index]["image"]

    def _prepared(self, records: list[Record], path: str) -> Sequence[Record | None]:
        """The records of a file with the fields that are checked, None for one to leave out. Default: as they are."""
        return records

    def record(self, index: int) -> Any:
        """The record with all its fields."""
        return self._images[index]

    known = record

    def _check_given(self, what: str) -> None:
        if not self._images:
            raise InputError(f"no {what} is given: name at least one in the configuration")


class Pairs(Records):
    """Images with captions: annotation files (also LLaVA's), shards, a folder with text files, saved data sets."""

    def __init__(self, files: Files):
        files, roots = files.resolved(), list(files.image_roots)

        def place(record: Record, where: str) -> str:
            return files.image(record["image"], record.get("dataset", roots[0] if len(roots) == 1 else None), where)

        self._without = 0
        super().__init__(files, {"image": is_text, "caption": is_caption}, place)
        if self._without:
            self.left_out.append(f"{counted(self._without, 'conversation')} without an image")
        for shard in (shard for pattern in files.shards for shard in expand_shards(files.path(pattern))):
            self.paths.append(shard)
            samples, left_out = index_shard(shard)
            self._images += samples
            if left_out:
                self.left_out.append(f"{shard}: {len(samples)} pairs are read; left out are {left_out}")
        if files.folder:
            records, pictures, texts = folder_pairs(Path(files.path(files.folder)))
            self._images += records
            self.listing = hash_json([[record["image"], record["caption"]] for record in records])
            for alone, noun, other in ((pictures, "picture", "text"), (texts, "text", "picture")):
                if alone:
                    what = f"{counted(len(alone), noun)} without a {other} (first: {alone[0]})"
                    self.left_out.append(f"{files.folder}: {what}")
        for saved in map(files.path, files.saved):
            pairs, paths = saved_pairs(saved)
            self._images += pairs
            self.paths += paths
        self._check_given("annotation file, shard, folder or saved data set")
        for words in self.left_out[:NAMED]:
            say_once(words)
        if len(self.left_out) > NAMED:
            more = counted(len(self.left_out) - NAMED, "more source")
            say_once(f"something is left out of {more}, too (last: {self.left_out[-1]})")

    def _prepared(self, records: list[Record], path: str) -> Sequence[Record | None]:
        """With captions for conversations."""
        found = with_captions(records, path)
        self._without += found.count(None)
        return found

    def name(self, index: int) -> str:
        """The image's path, or the place inside of a file."""
        item = self._images[index]
        return item["image"] if isinstance(item, dict) else item.name

    def file(self, index: int) -> str | None:
        """The image file; None where it is inside of another file."""
        return None if self.record(index) is None else self.name(index)

    def record(self, index: int) -> Record | None:
        """The record with all its fields; None where the pair is in a shard or a saved data set."""
        item = self._images[index]
        return item if isinstance(item, dict) else None

    def known(self, index: int) -> str | list[str]:
        """The caption or captions."""
        item = self._images[index]
        return item["caption"] if isinstance(item, dict) else item.read()[1]

    def read(self, index: int) -> tuple[Image.Image, str | list[str]]:
        """The image and its caption or captions; ImageError when the image cannot be read."""
        item = self._images[index]
        image, caption = (item["image"], item["caption"]) if isinstance(item, dict) else item.read()
        return read_image(image, self.name(index), self.ground), caption


class RegionRecords(Records):
    """Images with described boxes: vg_regions.json. Paths are joined with `root` only."""

    def __init__(self, files: Files):
        files = files.resolved()

        def place(record: Record, where: str) -> str:
            if record.get("caption"):  # of the whole image; it may be missing or empty
                check_record(record, where, {"caption": is_caption})
            return join_root(files.root, record["image"])

        super().__init__(files, {"image": is_text, "elems": is_elements}, place)
        self._check_given("region file")


class ByImage(Source):
    """A numbered list of groups: records of one image, in the source's order, at most `most` together.

    The vision tower, most of the work of a step, then encodes the image once for all of them. With 1, group i is
    record i.
    """

    def __init__(self, source: Source, most: int):
        super().__init__()
        self._source, self.paths, self.left_out, self.listing = source, source.paths, source.left_out, source.listing
        of_image: dict[str, list[int]] = {}
        for number in range(len(source)):
            of_image.setdefault(source.name(number), []).append(number)
        cut = [found[start : start + most] for found in of_image.values() for start in range(0, len(found), most)]
        self._images = sorted(cut)

    def known(self, index: int) -> list[int]:
        """The source's numbers of the group's records."""
        return self._images[index]

    def name(self, index: int) -> str:
        """The image's name in the source."""
        return self._source.name(self.known(index)[0])

    def file(self, index: int) -> str | tuple[str, ...] | None:
        """The image file; None where it has no file of its own."""
        return self._source.file(self.known(index)[0])


def by_image(files: Files, checks: Checks) -> tuple[str, dict[str, list[Record]]]:
    """The annotation file of an evaluation, and its records by image file, in the order of first appearance.

    Image paths lie below the first image root, whatever the records call their data set. `files` are resolved.
    """
    others = [key for key in ("shards", "saved", "folder") if getattr(files, key)]
    if len(files.annotations) != 1 or others:
        given = ", ".join([*files.annotations, *others]) or "none"
        raise InputError(
            f"these images and texts are read from one annotation file, and the configuration has {given}: name one "
            "in 'annotations', and nothing else"
        )
    path = files.path(files.annotations[0])
    records = read_json_list(path)
    check_fields(records, path, {"image": is_text} | checks)
    found: dict[str, list[Record]] = {}
    for record in records:
        image = files.image(record["image"], next(iter(files.image_roots), None), path)
        found.setdefault(image, []).append(record)
    return path, found
