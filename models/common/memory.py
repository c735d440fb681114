"""The C library's allocator: keep freed memory for the next step, or return it to the system at once.

On Linux with glibc; elsewhere these functions do nothing.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)
_LARGEST_THRESHOLD = 32 << 20  # the largest value that glibc's own dynamic threshold reaches
_TENSOR = 1 << 20  # bytes; smaller allocations do not matter


def keep_freed_memory() -> None:
    """Keep freed memory in this process, for all of its steps.

    By default glibc returns every freed activation to the kernel, which clears its pages again at the next step. The
    peak memory is unchanged.
    """
    _set(mmap=2**30, trim=2**31 - 1)
    _mallopt(_TOP_PAD, 100 * 2**20)


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Inside, a tensor's memory is returned as soon as it is freed, so that the peak has no fragmentation in it.

    By default tensors below 32 MB share a heap, in which the gaps between live tensors are not returned. To
    return them takes a quarter of CHITA's time. Where MALLOC_MMAP_THRESHOLD_ is set, as a grid does for its runs,
    nothing changes.
    """
    if "MALLOC_MMAP_THRESHOLD_" in os.environ:
        yield
        return
    return_freed_memory()
    _set(mmap=_TENSOR, trim=8 * _TENSOR)
    try:
        yield
    finally:
        _set(mmap=_LARGEST_THRESHOLD, trim=2 * _LARGEST_THRESHOLD)


def return_freed_memory() -> None:
    """Return the free memory between live blocks of the heap, so that it does not add to the next peak."""
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
