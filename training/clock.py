"""Seconds of training, of evaluation and in all that a run takes, summed over its sittings if it was killed."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from storage.atomic import write_json

SAVE_SECONDS = 10.0  # a killed sitting loses no more than these
NAMES = ("training", "evaluation", "total")


class Clock:
    """Counts from the moment it is made; `save` keeps the sums in a small file for the next sitting.

    The file is no part of the snapshot: what a run took must not change what it is.
    """

    def __init__(self, path: Path, before: Path | None = None):
        """path: where `save` writes. before: the file of the sittings so far, if this one goes on from them.

        A file that is missing or cut short counts as none: the time it told of is lost, the run is not.
        """
        self.path = path
        self._before = _read(before) if before is not None else dict.fromkeys((*NAMES, "sittings"), 0)
        self._here = dict.fromkeys(NAMES, 0.0)
        self._doing = "total"
        self._standing = False
        self._ended: dict[str, float] | None = None
        self._since = self._saved = time.monotonic()

    @contextlib.contextmanager
    def doing(self, name: str) -> Iterator[None]:
        """Time inside counts as `training` or `evaluation`, or as neither with `total`; the innermost alone counts."""
        outer = self._doing
        self._turn(name)
        try:
            yield
        finally:
            self._turn(outer)

    def seconds(self) -> dict[str, float]:
        """{training, evaluation, total, sittings}, those of earlier sittings included; total holds loading, too."""
        if self._ended is not None:
            return self._ended
        self._turn(self._doing)
        sums = {name: round(self._before[name] + self._here[name], 2) for name in NAMES}
        return {**sums, "sittings": int(self._before["sittings"]) + int(not self._standing)}

    def stop_counting(self) -> None:
        """Count nothing of this sitting: a finished run that is started again takes no longer than it did."""
        self._standing = True
        self._here = dict.fromkeys(NAMES, 0.0)

    def end(self) -> dict[str, float]:
        """The sums, which are final from here on: what follows is told of nowhere."""
        self._ended = self.seconds()
        return self._ended

    def save(self, now: bool = True) -> None:
        """Write the sums; with now=False only where the last time was more than SAVE_SECONDS ago."""
        if now or time.monotonic() - self._saved > SAVE_SECONDS:
            write_json(self.path, self.seconds())
            self._saved = time.monotonic()

    def _turn(self, name: str) -> None:
        """Book what has passed since the last turn, and count as `name` from here."""
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
