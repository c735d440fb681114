"""The C library's allocator: keep freed memory for the next step, or return it to the system at once.

All of it on Linux with glibc; elsewhere these functions do nothing.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_LARGEST_THRESHOLD = 32 << 20  # of what glibc finds by itself, where a long process ends up
_TENSOR = 1 << 20  # bytes; what is smaller does not add up


def keep_freed_memory() -> None:
    """For a whole process.

    By default glibc hands every freed activation back to the kernel, which clears its pages again at the next step.
    The peak stays what it was: only the fall after it goes away.
    """
    _set(mmap=2**30, trim=2**31 - 1)
    _mallopt(_TOP_PAD, 100 * 2**20)


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Within, each tensor's memory goes back as soon as it is freed: the peak is what is in use, without the holes.

    By default tensors below 32 MB come to lie side by side, and the holes between those that live on stay.
    """
    return_freed_memory()
    _set(mmap=_TENSOR, trim=8 * _TENSOR)
    try:
        yield
    finally:
        _set(mmap=_LARGEST_THRESHOLD, trim=2 * _LARGEST_THRESHOLD)


def return_freed_memory() -> None:
    """Return free memory between the allocator's live blocks, so that it does not add to the peak of what follows."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _set(mmap: int, trim: int) -> None:
    _mallopt(_MMAP_THRESHOLD, mmap)
    _mallopt(_TRIM_THRESHOLD, trim)


def _mallopt(what: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(what, value)
