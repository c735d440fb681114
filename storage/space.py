"""Check the free space of a disk before hours of work; and arrays that are kept there."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np

from console.errors import InputError, explain_os_error


def check_room(folder: Path, needed: int, purpose: str) -> None:
    """InputError when less than `needed` bytes are free where `folder` is, or will be.

    purpose: a phrase such as 'to fetch and unpack finetune.tar.gz'.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(
            f"{in_bytes(needed)} are needed in {folder} {purpose}, but only {in_bytes(free)} are free: "
            "free some space or choose another folder"
        )


def on_disk(array: np.ndarray, folder: Path | None = None) -> np.ndarray:
    """The array, memory-mapped from an unnamed temporary file in `folder` (None: the system's), so that it can be paged
    out.

    The file is freed with the array. An empty array is returned as it is: an empty file cannot be mapped.
    """
    if not array.size:
        return array
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(np.ascontiguousarray(array).data.cast("B"))  # through the mapping, a full disk is a SIGBUS
            file.flush()
            return np.memmap(file, array.dtype, "r+", shape=array.shape)
    except OSError as error:
        raise explain_os_error(error, f"write weights to {folder or tempfile.gettempdir()}") from error


def in_bytes(count: float) -> str:
    """A number of bytes for people: '512 bytes', '1.5 GB' (powers of 1000)."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:,.1f} TB"
