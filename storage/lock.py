"""Let one process at a time do a thing, by a lock that the system drops when its holder ends, however it ends."""

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
    """Hold the lock file `path`, after whoever holds it; the file stays behind.

    doing: reads like 'write the mini world to cache', for the InputError where the file cannot be written.
    waiting: printed where another process holds the lock.
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
    """Hold the lock file `path` for this process alone, or None where another one holds it; `release()` lets go.

    Children do not inherit it: it is free as soon as the process is gone, even where its data workers live on for
    seconds. doing: as in `locked`.
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
    """Hold the lock file `path` without waiting: the open file, or None where another process holds it.

    Closing the file lets go. Unlike `claim`'s, a child process that inherits its descriptor holds the lock, too, until
    it ends; filelock closes it in children.
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
        if file is None:  # else a file system without locks: two writers would do double work, not damage
            raise explain_os_error(error, doing) from error
    return file
