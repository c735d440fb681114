"""One run at a time in an output folder: a second would write the same files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lightning.fabric import Fabric

from console.errors import InputError
from storage.lock import claim, release

LOCK = "lock"


@contextlib.contextmanager
def sole_run(fabric: Fabric, folder: Path) -> Iterator[None]:
    """Hold `folder` for this run, all its processes together; InputError on each of them while another run has it."""
    claimed = claim(folder / LOCK, f"work in {folder}") if fabric.is_global_zero else None
    holder = fabric.broadcast(claimed if isinstance(claimed, str) else None)
    if holder is not None:
        raise InputError(
            f"another run (process {holder}) is at work in {folder}: wait for its end, or choose another --output_dir"
        )
    try:
        yield
    finally:
        if claimed is not None:
            release(folder / LOCK, claimed)
