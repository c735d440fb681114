"""Errors that a user can fix, and the exit of commands.

Bad input is an `InputError` whose text is one sentence: what is wrong, where, and what to do.
`run_command` prints it without a traceback and exits with code 2.
"""

from __future__ import annotations

import atexit
import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from console.interrupt import interrupt


class InputError(Exception):
    """Something the user gave is wrong; the message says what, where, and how to fix it."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint ` (did you mean 'x'?)` naming the closest of `choices`, or an empty string."""
    by_lower = {choice.lower(): choice for choice in choices}
    match = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.5)
    return f" (did you mean '{by_lower[match[0]]}'?)" if match else ""


def explain_os_error(error: OSError, doing: str) -> InputError:
    """Turn a failed file operation into a sentence; `doing` reads like 'write the mask to out/x'."""
    code = error.errno or (errno.ENOENT if isinstance(error, FileNotFoundError) else 0)  # some libraries set none
    reason = {
        errno.ENOSPC: "the disk is full; free some space or choose another folder",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
        errno.EFBIG: "the file exceeds the size limit there; raise the limit or choose another folder",
        errno.EACCES: "permission is denied; choose a folder you may write to",
        errno.EPERM: "the operation is not permitted there; choose another folder",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "no such file or folder; check the path",
        errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
        errno.EEXIST: "the path already exists; choose another name",
        errno.EISDIR: "it is a folder; name a file",
        errno.ENODEV: "it is not a file, perhaps a folder; name a file",
        errno.ENAMETOOLONG: "the name is too long for the file system; choose a shorter one",
    }.get(code, f"{error.strerror or error}; check the path")
    return InputError(f"cannot {doing}: {reason}")


def in_a_line(error: Exception) -> str:
    """What a library's exception says, on one line and shortened, for a sentence of ours."""
    return " ".join(str(error).split())[:150]


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, in Python or in torch on a GPU or CPU; works without importing torch."""
    words = ("can't allocate memory", "out of memory")  # torch's CPU allocator; CUDA's libraries
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def run_command(main: Callable[[], None]) -> None:
    """Run a command's `main`; an InputError ends it with one line on stderr and exit code 2."""
    code = _code(main)
    if process_group() is not None:
        _end_at_once(code)
    if code:
        sys.exit(code)


def _code(main: Callable[[], None]) -> int:
    """Run `main`; returns 0, 2, or the code of the signal that ended it."""
    try:
        interrupt.end_on_sigterm()
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            "error: the device is out of memory: use a smaller batch_size or model, or a larger device", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return interrupt.code
    return 0


def process_group() -> Any:
    """torch.distributed if this process is one of a group, else None; works without importing torch."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None


def _end_at_once(code: int) -> None:
    """End the process after its exit functions, without Python's finalisation.

    gloo's threads release the tensors of the last messages late. If one does so while the interpreter shuts down, the
    process ends with SIGABRT although its work is done.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
