"""Seconds of training, of evaluation and in total, summed over the processes of a run that was resumed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from storage.atomic import write_json

SAVE_SECONDS = 10.0  # a killed run loses at most these
NAMES = ("training", "evaluation", "total")


class Clock:
    """Counts from its creation; `save` writes the sums to a small file, which a resumed run reads.

    The file is not part of the snapshot, so that equal runs have equal snapshots whatever their durations.
    """

    def __init__(self, path: Path, before: Path | None = None):
        """path: where `save` writes. before: that file of the resumed run, if any; ignored if missing or truncated."""
        self.path = path
        self._before = _read(before) if before is not None else dict.fromkeys((*NAMES, "sittings"), 0)
        self._here = dict.fromkeys(NAMES, 0.0)
        self._doing = "total"
        self._standing = False
        self._ended: dict[str, float] | None = None
        self._since = self._saved = time.monotonic()

    @contextlib.contextmanager
    def doing(self, name: str) -> Iterator[None]:
        """Count time inside as `training` or `evaluation` (`total`: as neither); the innermost call decides."""
        outer = self._doing
        self._turn(name)
        try:
            yield
        finally:
            self._turn(outer)

    def seconds(self) -> dict[str, float]:
        """{training, evaluation, total, sittings}: seconds, and how often the run was started or resumed."""
        if self._ended is not None:
            return self._ended
        self._turn(self._doing)
        sums = {name: round(self._before[name] + self._here[name], 2) for name in NAMES}
        return {**sums, "sittings": int(self._before["sittings"]) + int(not self._standing)}

    def stop_counting(self) -> None:
        """Count nothing since the start: repeating the command of a finished run does not change its time."""
        self._standing = True
        self._here = dict.fromkeys(NAMES, 0.0)

    def end(self) -> dict[str, float]:
        """The final sums; later time is not counted."""
        self._ended = self.seconds()
        return self._ended

    def save(self, now: bool = True) -> None:
        """Write the sums; with now=False only if the last save was more than SAVE_SECONDS ago."""
        if now or time.monotonic() - self._saved > SAVE_SECONDS:
            write_json(self.path, self.seconds())
            self._saved = time.monotonic()

    def _turn(self, name: str) -> None:
        """Add the time since the last turn, and count as `name` from here."""
        now = time.monotonic()
        passed, self._since = now - self._since, now
        if not self._standing:
            self._here["total"] += passed
            if self._doing != "total":
                self._here[self._doing] += passed
        self._doing = name


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: float(found[name]) for name in (*NAMES, "sittings")}
    except (OSError, ValueError, KeyError, TypeError):
        return dict.fromkeys((*NAMES, "sittings"), 0.0)
