"""Hash a generated part again from its files, to see whether they are whole and are the recorded world."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from console.errors import InputError
from data.images import ImageError, read_image
from data.miniworld.write import combine, hash_bytes, hash_json, hash_pixels


def hash_part(root: Path, manifest: dict[str, Any], advance: Callable[[int], None]) -> str:
    """The hash of a part's files as they are on disk now, made as `Writer.digest` made it.

    Calls `advance(1)` for every picture. Raises InputError naming the first missing or broken file.
    """
    hashes: dict[str, str] = {}
    for name in manifest["files"]:
        content = _read(root / name)
        hashes[name] = hash_bytes(content) if name.endswith(".csv") else hash_json(_parse(root / name, content))
    for split in manifest["splits"]:
        truth = _parse(root / f"truth/{split}.json", _read(root / f"truth/{split}.json"))
        shards: dict[str, dict[str, bytes]] = {}
        for image in truth:
            shard, inside, member = image.partition(".tar/")
            if not inside:
                hashes[image] = _hash_picture(root / image, _read(root / image))
            else:
                if shard not in shards:
                    shards = {shard: _members(root / f"{shard}.tar")}  # one shard in memory at a time
                text = member.removesuffix("png") + "txt"
                packed, caption = shards[shard].get(member), shards[shard].get(text)
                if packed is None or caption is None:
                    raise InputError(f"{root / shard}.tar lacks {member} or its text; {MEND}")
                hashes[image] = _hash_picture(root / image, packed)
                hashes[f"{shard}.tar/{text}"] = hash_bytes(caption)
            advance(1)
    return combine(hashes)


MEND = "delete the world's folder and generate it anew"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {MEND}") from error


def _parse(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(f"{path} is no whole JSON file; {MEND}") from error


def _hash_picture(path: Path, packed: bytes) -> str:
    try:
        return hash_pixels(np.asarray(read_image(packed)))
    except ImageError as error:
        raise InputError(f"{path} is no whole picture; {MEND}") from error


def _members(path: Path) -> dict[str, bytes]:
    try:
        with tarfile.open(path) as tar:
            return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{path} is no whole tar file; {MEND}") from error
