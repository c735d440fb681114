"""Image-text pairs in webdataset shards (`<key>.jpg` + `<key>.txt` or `<key>.json` in tar files), read at random.

The webdataset library streams shards, so that batches depend on the number of workers; here they depend only on seed
and number. It also ends silently at joined archives and damaged headers. Therefore the headers of a shard are scanned
once, with Python's tarfile, and any sample can be read with one seek. Names are split and grouped as in webdataset, but
an image and its text need not be adjacent.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from braceexpand import UnbalancedBracesError, braceexpand

from configs.schema import CONFIGS
from console.errors import InputError, explain_os_error
from console.progress import console
from console.words import agreed, counted
from data.images import IMAGE_SUFFIXES, is_hidden
from data.records import is_caption
from data.text import TextError
from storage.atomic import atomic_path
from storage.hashing import hash_json
from storage.lock import locked

TEXTS = (".txt", ".caption", ".json")
"""Endings of texts, by preference."""

FIELDS = {*IMAGE_SUFFIXES, *TEXTS}

COMPRESSED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""First bytes of a file -> the function that opens it unpacked."""

CACHE = CONFIGS.parent / "cache" / "shards"
"""Where compressed shards are unpacked, unless $SHARDS_DIR says otherwise."""

CHUNK = 1 << 20

LeftOut = dict[str, list[str]]
"""Reason -> names of what was left out."""


@dataclass(frozen=True)
class Member:
    """Where a file lies within a tar file, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardSample:
    """One pair: the shard, the tar file with its bytes (another one if it is compressed), the key, image and text."""

    shard: str
    file: str
    key: str
    image: Member
    text: Member
    is_json: bool

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.shard}:{self.key}"

    def read(self) -> tuple[bytes, str]:
        """Encoded image and caption; TextError when there is no caption."""
        try:
            with Path(self.file).open("rb") as file:
                file.seek(self.image.offset)
                image = file.read(self.image.size)
                file.seek(self.text.offset)
                text = file.read(self.text.size).decode("utf-8-sig", errors="replace")  # without a byte order mark
        except OSError as error:
            raise explain_os_error(error, f"read the shard {self.file}") from error
        if self.is_json:
            lacking = TextError(f"{self.shard}: {self.key}.json has no 'caption' that is a text")
            try:
                text = json.loads(text)["caption"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise lacking from error
            if not is_caption(text):
                raise lacking
        return image, text


def expand_shards(pattern: str) -> list[str]:
    """The shards of a pattern such as images/sbu/{00000..00099}.tar; InputError naming those missing."""
    try:
        paths = list(braceexpand(pattern))
    except UnbalancedBracesError as error:
        raise InputError(
            f"the shards {pattern} have a brace that is not closed, or not opened: write it like {{00000..00099}}.tar"
        ) from error
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        those = f"{counted(len(missing), 'shard', of=len(paths))} of {pattern} {agreed(len(missing), 'is')}"
        raise InputError(f"{those} missing (first: {missing[0]})")
    return paths


def index_shard(path: str) -> tuple[list[ShardSample], str]:
    """All pairs of a tar file in its order, and a summary of what was left out of it ("": nothing).

    InputError when not one pair can be read.
    """
    left_out: LeftOut = {}
    try:
        file = _unpacked(path)
        groups = _grouped(_members(file, left_out), left_out)
    except OSError as error:
        raise explain_os_error(error, f"read the shard {path}") from error
    samples = []
    for key, fields in groups:
        images, texts = ([ending for ending in endings if ending in fields] for endings in (IMAGE_SUFFIXES, TEXTS))
        if images and texts:
            is_json = texts[0] == ".json"
            samples.append(ShardSample(path, file, key, fields[images[0]], fields[texts[0]], is_json))
        else:
            left_out.setdefault("images without a text" if images else "texts without an image", []).append(key)
        if len(images) > 1:
            left_out.setdefault("more than one image", []).append(key)
    summary = ", ".join(f"{what}: {len(names)} (first: {names[0]})" for what, names in left_out.items())
    if not samples:
        raise InputError(
            f"{path} holds no pair of an image and a text of the same key"
            + f" ({summary})" * bool(summary)
            + ": check that it is a whole tar file of such pairs"
        )
    return samples, summary


def _grouped(members: Iterator[tuple[str, Member]], left_out: LeftOut) -> list[tuple[str, dict[str, Member]]]:
    """(key, {ending: member}) in the order of the keys' first members.

    A key that comes again after others begins a second group where it would fill a place twice: archives that were
    joined number their samples alike. Of two files of one name that follow each other, the first counts.
    """
    groups: list[tuple[str, dict[str, Member]]] = []
    latest: dict[str, dict[str, Member]] = {}
    previous = None
    for name, member in members:
        folder, slash, file = name.removeprefix("./").rpartition("/")
        stem, dot, rest = file.partition(".")  # as webdataset: all from the first dot on is the ending
        key, ending = f"{folder}{slash}{stem}", f"{dot}{rest}".lower()
        if ending not in FIELDS:
            continue
        if key not in latest or (ending in latest[key] and key != previous):
            latest[key] = {}
            groups.append((key, latest[key]))
        if ending in latest[key]:
            left_out.setdefault("files of the same name", []).append(name)
        else:
            latest[key][ending] = member
        previous = key
    return groups


def _members(path: str, left_out: LeftOut) -> Iterator[tuple[str, Member]]:
    """(name, place) of the intact files of a tar file; damaged places and hidden files are skipped and recorded."""

    def leave(what: str, name: str) -> None:
        left_out.setdefault(what, []).append(name)

    with Path(path).open("rb") as file, Path(path).open("rb") as aside:
        length, end, start = os.fstat(file.fileno()).st_size, 0, 0  # end: of what was understood
        while start < length:
            file.seek(start)
            try:
                # Zeros end an archive, and another may be joined to it; what is no header is skipped as well.
                with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
                    for member in tar:
                        if _has_data(aside, end, member.offset):
                            leave("damaged places", f"bytes {end} to {member.offset}")
                        end = member.offset_data + _in_blocks(member.size if member.isreg() else 0)
                        if member.isdir():
                            continue
                        if is_hidden(member.name):
                            leave("hidden or system files", member.name)
                        elif not member.isreg() or member.issparse():
                            leave("links and the like", member.name)
                        elif member.offset_data + member.size > length:
                            leave("files cut short", member.name)
                        else:
                            yield member.name, Member(member.offset_data, member.size)
                break
            except (tarfile.TarError, ValueError):  # in what goes with a header, such as a long name
                start = max(start, end) + tarfile.BLOCKSIZE
        if _has_data(aside, end, length):
            leave("damaged places", f"bytes {end} to {length}")


def _has_data(file: BinaryIO, start: int, stop: int) -> bool:
    """Whether there is anything but zeros, the padding of blocks, between two places of a file."""
    file.seek(start)
    return any(file.read(min(CHUNK, stop - at)).strip(b"\0") for at in range(start, stop, CHUNK))


def _in_blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _unpacked(path: str) -> str:
    """Where the tar file lies as it is: `path`, or the copy of a compressed one, made on first use.

    A compressed file cannot be read at random: all before a place has to be unpacked first.
    """
    with Path(path).open("rb") as file:
        first, about = file.read(6), os.fstat(file.fileno())
    unpack = next((unpack for mark, unpack in COMPRESSED.items() if first.startswith(mark)), None)
    if unpack is None:
        return path
    folder = Path(os.environ.get("SHARDS_DIR") or CACHE)
    version = hash_json([str(Path(path).resolve()), about.st_size, about.st_mtime_ns])[:16]
    copy = folder / f"{Path(path).name.partition('.')[0]}-{version}.tar"
    with locked(folder / ".lock", f"unpack shards into {folder}"):  # by one of several processes
        if not copy.is_file():
            note = f"{path} is compressed, and pairs are read at random: it is unpacked once, as {copy}"
            console.print(note, markup=False)
            with atomic_path(copy) as temporary, unpack(path) as source, temporary.open("wb") as target:
                target.writelines(_pieces(source))
    return str(copy)


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    """What a compressed file holds, as far as it can be unpacked."""
    while True:
        try:
            piece = source.read1(CHUNK)  # not `read`, which loses what stands before the damage
        except (EOFError, zlib.error, lzma.LZMAError):
            return
        except OSError as error:
            if error.errno is not None:  # the disk's; the unpackers give none
                raise
            return
        if not piece:
            return
        yield piece
