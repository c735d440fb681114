"""The C library's allocator: memory that is freed is kept for the next step, or goes back to the system at once."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # of mallopt(3)


def keep_freed_memory() -> None:
    """On Linux with glibc; elsewhere nothing.

    By default glibc hands every freed activation back to the kernel, which clears its pages again at the next step.
    The peak stays what it was: only the fall after it goes away.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 2**30)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_TOP_PAD, 100 * 2**20)


def return_freed_memory() -> None:
    """Hand back what lies free between the allocator's live blocks, for what follows is not to come on top of it.

    On Linux with glibc; elsewhere nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
