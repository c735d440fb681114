"""Write a file or a folder under a temporary name, then rename it, so that no partial file is ever visible."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from console.errors import InputError, explain_os_error


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it is renamed to `path`, on failure removed.

    Works for files and folders (the caller creates either). The parent folder is created.
    Raises InputError when the disk is full, the folder is not writable, and the like.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise explain_os_error(error, f"write {path}") from error
    finally:
        with contextlib.suppress(OSError):  # it does not exist, or the file system rejects the name
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink()


def _temporary(path: Path) -> Path:
    """A hidden, slightly longer name next to `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


def remove_parts(path: Path | str) -> None:
    """Remove temporary files of killed processes next to `path`; no process may be writing it."""
    path = Path(path)
    for part in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def _flush_to_disk(path: Path) -> None:
    """A rename is only atomic after a power cut if the bytes reached the disk before it."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def check_writable(folder: Path | str, name: str = "") -> None:
    """InputError, before hours of work, when `folder` (created if missing) is not writable.

    name: the longest file name that will be written, in case the file system does not allow it.
    """
    probe = _temporary(Path(folder) / name) if name else Path(folder) / f".{uuid.uuid4().hex[:8]}.probe"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise explain_os_error(error, f"write {Path(folder) / name}" if name else f"write to {folder}") from error


@contextlib.contextmanager
def no_empty_folder(folder: Path | str) -> Iterator[None]:
    """Remove the new folders on the way to `folder` that an InputError or a stop leaves empty."""
    absent = [path for path in (Path(folder), *Path(folder).parents) if not path.exists()]  # from the inside out
    try:
        yield
    except (InputError, KeyboardInterrupt):
        with contextlib.suppress(OSError):  # it is not empty, or another process was faster
            for path in absent:
                path.rmdir()
        raise


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically.

    A lone surrogate, which UTF-8 cannot encode, is written as a JSON escape, and so survives a round trip.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False)
    write_text(path, text.encode("utf-8", "backslashreplace").decode() + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; InputError for a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: it is not JSON ({error}); remove it, or give another folder") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is damaged: it is no JSON object; remove it, or give another folder")
    return found
