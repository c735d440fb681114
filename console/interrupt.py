"""Stop at a good moment: Ctrl-C or SIGTERM asks, the work in hand is finished and saved, then the run ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interrupt:
    """Remembers that the user (or the cluster) asked to stop; a second request stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def listen(self) -> None:
        """Take over SIGINT and SIGTERM (main thread only; elsewhere signals stay as they are)."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._on_signal)
            signal.signal(signal.SIGTERM, self._on_signal)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a stop was asked for: call it where stopping loses nothing."""
        if self.requested:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


interrupt = Interrupt()
