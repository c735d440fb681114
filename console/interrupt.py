"""Stop cleanly: on Ctrl-C or SIGTERM the current step is finished and saved, then the run ends."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


class Interrupt:
    """Records a request to stop, and its signal; a second request stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._number = signal.SIGINT
        self._process = 0

    @property
    def code(self) -> int:
        """The exit code that shells use for this signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self._number

    def end_on_sigterm(self) -> None:
        """Until `listen`, let SIGTERM end the command like Ctrl-C, so that unfinished files are removed."""
        self._number, self._process = signal.SIGINT, os.getpid()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_end)

    def listen(self) -> None:
        """Take over SIGINT and SIGTERM (main thread only; elsewhere signals stay as they are)."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._on_signal)
            signal.signal(signal.SIGTERM, self._on_signal)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a stop was requested: call it where all work is saved."""
        if self.requested:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked: its command ends it this way
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._number = number
        raise KeyboardInterrupt


interrupt = Interrupt()
