"""One run at a time in an output folder: a second would write the same files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lightning.fabric import Fabric

from console.errors import InputError
from storage.lock import claim

LOCK = "lock"


@contextlib.contextmanager
def sole_run(fabric: Fabric, folder: Path) -> Iterator[None]:
    """Lock `folder` for this run and all its processes; InputError on each of them while another run has it."""
    lock = claim(folder / LOCK, f"work in {folder}") if fabric.is_global_zero else None
    if not fabric.broadcast(lock is not None):
        raise InputError(f"another run uses {folder}: wait for its end, or choose another --output_dir")
    try:
        yield
    finally:
        if lock is not None:
            (folder / LOCK).unlink(missing_ok=True)  # before the release: a waiting process checks that it still exists
            lock.release()
