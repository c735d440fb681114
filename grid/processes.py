"""Processes of runs: started, asked to stop, and measured when they end."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO


@dataclass(frozen=True)
class Ended:
    """code: as subprocess gives it. cpu_seconds: of all cores; peak_memory_gb: resident; None where nobody measured."""

    code: int
    cpu_seconds: float | None = None
    peak_memory_gb: float | None = None


class RunProcess(Protocol):
    """A run's process."""

    def poll(self) -> Ended | None:
        """None while it runs."""

    def send(self, number: int) -> None:
        """Send it a signal; nothing where it is gone."""


Start = Callable[[list[str], Path, TextIO, dict[str, str]], RunProcess]
"""command, file that its output is added to, lock that it holds as long as it lives, environment -> its process."""


class Spawned:
    """A process that begins from nothing, as a shell would start it."""

    def __init__(self, command: list[str], log: Path, lock: TextIO, variables: dict[str, str]):
        """Start it; OSError where that fails."""
        self._ended: Ended | None = None
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=variables,
                pass_fds=(lock.fileno(),),
                start_new_session=True,  # Ctrl-C is passed on once, by the runner
            )

    def poll(self) -> Ended | None:
        """None while it runs."""
        if self._ended is None:
            number, status, used = os.wait4(self._process.pid, os.WNOHANG)
            if number:
                self._ended = measured(status, used)
                self._process.returncode = self._ended.code  # else subprocess would wait for it, too
        return self._ended

    def send(self, number: int) -> None:
        """Send it a signal; nothing where it is gone."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


def measured(status: int, used: resource.struct_rusage) -> Ended:
    """From what os.wait4 says of a process."""
    cpu = used.ru_utime + used.ru_stime
    return Ended(os.waitstatus_to_exitcode(status), round(cpu, 3), round(used.ru_maxrss * 1024 / 1e9, 3))
