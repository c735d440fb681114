"""Hash a part of the mini world from its files, to record it and to check the files later.

The hash goes over raw pixels and the content of the texts, not over PNG bytes: those depend on the zlib that packed
them. It is a hash of sorted (file, hash) lines.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from console.errors import InputError
from console.progress import progress_bar
from data.images import ImageError, read_image
from storage.hashing import hash_json

REPAIR = "delete the world's folder and generate it again"


def hash_part(root: Path, manifest: dict[str, Any], show: bool = True) -> str:
    """The hash of a part's files as they are on disk now.

    manifest: the part's name, `files` (texts and tables), `splits`, and how many `images`. show: draw a progress bar.
    Raises InputError naming the first missing or broken file.
    """
    hashes: dict[str, str] = {}
    _members.cache_clear()
    for name in manifest["files"]:
        content = _read(root / name)
        hashes[name] = _sha256(content) if name.endswith(".csv") else hash_json(_parse(root / name, content))
    with progress_bar(f"hashing {manifest['part']}", manifest["images"], show=show) as advance:
        for split in manifest["splits"]:
            for image in _parse(root / f"truth/{split}.json", _read(root / f"truth/{split}.json")):
                hashes[image] = _sha256(_pixels(root / image, _read(root / image)))
                if ".tar/" in image:
                    text = image.removesuffix("png") + "txt"
                    hashes[text] = _sha256(_read(root / text))
                advance()
    return _sha256("".join(f"{path} {hashes[path]}\n" for path in sorted(hashes)).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path) -> bytes:
    """The content of a file, or of a member of a tar file: `shard.tar/member`."""
    try:
        if path.parent.suffix == ".tar":
            return _members(path.parent)[path.name]
        return path.read_bytes()
    except (OSError, tarfile.TarError, KeyError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InputError(f"{path} cannot be read ({reason}); {REPAIR}") from error


@functools.lru_cache(maxsize=1)  # one shard in memory at a time
def _members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()}


def _parse(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(f"{path} is not a whole JSON file; {REPAIR}") from error


def _pixels(path: Path, packed: bytes) -> bytes:
    """uint8 pixels [h, w, 3], row by row."""
    try:
        return np.asarray(read_image(packed)).tobytes()
    except ImageError as error:
        raise InputError(f"{path} is not a whole picture; {REPAIR}") from error
