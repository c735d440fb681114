"""Let one process at a time do a thing, by a lock that the system drops when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from console.errors import explain_os_error


@contextlib.contextmanager
def locked(path: Path, doing: str, waiting: Callable[[str], None] = lambda holder: None) -> Iterator[None]:
    """Hold the lock file `path`; it stays behind. `waiting(process id of the holder)` is called where one must wait.

    doing: reads like 'write the mini world to cache', for the InputError where the file cannot be written.
    """
    file = _opened(path, doing)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            waiting(file.read().strip() or "unknown")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: two writers would do double work, not damage
            pass
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def try_lock(path: Path, doing: str) -> TextIO | None:
    """Hold the lock file `path` without waiting: the open file, or None where another process holds it.

    Closing the file lets go. A child process that inherits its descriptor holds the lock, too, until it ends.
    """
    file = _opened(path, doing)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:  # as above
        pass
    return file


def claim(path: Path, doing: str) -> TextIO | str:
    """Hold the lock file `path` for this process alone: the open file, or the process id of who holds it.

    Unlike `try_lock`, children do not inherit it: it is free as soon as the process is gone, even where its data
    workers live on for seconds. `release` lets go. doing: as in `locked`.
    """
    while True:
        file = _opened(path, doing)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip()
            file.close()
            return holder or "unknown"
        except OSError:  # as above
            pass
        if _is_still(path, file):  # else its last holder removed it after it was opened here
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file
        file.close()


def release(path: Path, file: TextIO) -> None:
    """Let go of what `claim` gave, and remove the file."""
    path.unlink(missing_ok=True)
    file.close()


def _opened(path: Path, doing: str) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        raise explain_os_error(error, doing) from error


def _is_still(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
