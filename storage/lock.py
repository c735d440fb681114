"""Locks between processes, which the system releases when their holder ends."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from filelock import FileLock, Timeout

from console.errors import explain_os_error
from console.progress import console


@contextlib.contextmanager
def locked(path: Path, doing: str, waiting: str = "") -> Iterator[None]:
    """Hold the lock file `path`, waiting for its current holder; the file is not removed.

    doing: a phrase such as 'write the mini world to cache', for the InputError where the file cannot be written.
    waiting: printed if another process holds the lock.
    """
    lock = claim(path, doing)
    if lock is None:
        if waiting:
            console.print(f"waiting: {waiting}", markup=False)
        lock = FileLock(path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def claim(path: Path, doing: str) -> FileLock | None:
    """Hold the lock file `path` for this process, or None if another one holds it; `release()` frees it.

    Children do not inherit it: it is free as soon as the process ends, even if its data workers run for seconds longer.
    doing: as in `locked`.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        return None
    except OSError as error:
        raise explain_os_error(error, doing) from error
    return lock


def try_lock(path: Path, doing: str) -> TextIO | None:
    """Hold the lock file `path` without waiting: the open file, or None if another process holds it.

    Closing the file releases it. Unlike with `claim`, a child process that inherits the descriptor also holds the lock
    until it ends.
    """
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if file is None:  # otherwise a file system without locks: two writers would repeat work, but not damage files
            raise explain_os_error(error, doing) from error
    return file
