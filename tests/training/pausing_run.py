"""pretrain.py, but it stops and waits for a signal at a given moment, so that a test can strike just there.

python -m tests.training.pausing_run STAGE STEP MOMENT [the options of pretrain.py]
MOMENT: `before` the snapshot of that step is written, `during` (written, not yet under its name) or `after`.
The file `paused` in the working directory says that it waits.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pretrain
import storage.atomic
import training.loop
from console.errors import run_command
from console.interrupt import interrupt


def install(stage: str, step: int, moment: str) -> None:
    """Put the pause into the loop's saving."""
    save, flush = training.loop.save_snapshot, storage.atomic._flush_to_disk

    def pause() -> None:
        Path("paused").touch()
        while not interrupt.requested:  # signal.pause() would miss one that came a moment too early
            time.sleep(0.01)

    def pausing_flush(path: Path) -> None:
        flush(path)
        pause()

    def pausing_save(path: Path, module: Any, optimizer: Any, at: int, *more: Any) -> None:
        here = (path.parent.name, at) == (stage, step)
        if here and moment == "before":
            pause()
        storage.atomic._flush_to_disk = pausing_flush if here and moment == "during" else flush
        save(path, module, optimizer, at, *more)
        storage.atomic._flush_to_disk = flush
        if here and moment == "after":
            pause()

    training.loop.save_snapshot = pausing_save


if __name__ == "__main__":
    install(sys.argv[1], int(sys.argv[2]), sys.argv[3])
    sys.argv[1:] = sys.argv[4:]
    run_command(pretrain.main)
