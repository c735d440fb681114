"""Checkpoint the running sums of a calibration, so that an interrupted run can resume."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from console.errors import InputError
from console.interrupt import interrupt
from console.progress import console
from storage.tensors import parse_metadata, read_safetensors, write_safetensors

State = tuple[dict[str, Tensor], dict[str, Any]]


class Checkpoint:
    """A file with the tensors and the progress of a calibration.

    identity: what defines the run (model, pruner, options, data, seed); a file of another run is refused.
    every: seconds between two saves. The file is removed by `finish`.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        every: float = 60.0,
        resume: bool = False,
        write: bool = True,
        notes: Callable[[], Any] = lambda: None,
    ):
        """notes: extra data to save with the sums; `load` restores it into `remembered`."""
        self.path = path
        self.identity = json.loads(json.dumps(identity))
        self.remembered: Any = None
        self._every = every
        self._write = write
        self._notes = notes
        self._last = time.monotonic()
        self._resume = resume

    def load(self) -> State | None:
        """The saved tensors and progress, or None when there is nothing to resume."""
        if not self._resume:
            return None
        if not self.path.is_file():
            console.print(f"nothing to resume ({self.path} does not exist): starting from the beginning")
            return None
        try:
            tensors, metadata = read_safetensors(self.path)
            identity, progress, notes = (
                parse_metadata(self.path, metadata, key) for key in ("identity", "progress", "notes")
            )
        except InputError as error:
            raise InputError(f"{self.path} is damaged and cannot be resumed: run without --resume") from error
        for key in {**identity, **self.identity}:
            if identity.get(key) != self.identity.get(key):
                raise InputError(
                    f"{self.path} was written by another run ({key}: {identity.get(key)!r} then, "
                    f"{self.identity.get(key)!r} now): run without --resume, or with the same options"
                )
        self.remembered = notes
        console.print(f"resuming from {self.path}")
        return tensors, progress

    def offer(self, state: Callable[[], State]) -> None:
        """Save when it is due or a stop was requested; call it where the sums are consistent."""
        if self._write and (interrupt.requested or time.monotonic() - self._last >= self._every):
            tensors, progress = state()
            metadata = {"identity": self.identity, "progress": progress, "notes": self._notes()}
            metadata = {key: json.dumps(value) for key, value in metadata.items()}
            write_safetensors(self.path, tensors, metadata)
            self._last = time.monotonic()
            if interrupt.requested:
                console.print(f"saved {self.path}: the same command with --resume continues from there")
        interrupt.check()

    @property
    def parts(self) -> Path:
        """A folder of finished results, which are written once, since they are too large to be in every checkpoint.

        The progress names those that count.
        """
        return self.path.with_suffix(".parts")

    def keep(self, save: Callable[[Path], None], name: str) -> None:
        """Let `save` write a file into `parts`."""
        if self._write:
            self.parts.mkdir(exist_ok=True)
            save(self.parts / name)

    def finish(self) -> None:
        """Remove the checkpoint, once the results are written."""
        if self._write:
            self.path.unlink(missing_ok=True)
            shutil.rmtree(self.parts, ignore_errors=True)


no_checkpoint = Checkpoint(Path("nowhere"), {}, write=False)
