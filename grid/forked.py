"""Runs as forks of one process that has the libraries loaded: importing them takes a short run's first seconds.

Only on Linux without a GPU. Elsewhere, and where that process cannot start or ends, runs begin from nothing. The peak
memory of a fork reads up to 0.3 GB lower than that of a run that imports everything itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO

from grid.processes import Ended, RunProcess, Spawned
from models.tasks import TASKS

POSSIBLE = sys.platform == "linux"
"""Elsewhere libraries do not survive a fork, or sockets keep no messages apart."""

MODULES = (
    "tasks.retrieval", "tasks.captioning", "tasks.captioning_pretrain", "tasks.vqa",
    "tasks.image_classification", "training.finetuning", "evaluation.zero_shot_table", "pruners.command",
    *sorted({place.partition(":")[0] for families in TASKS.values() for place in families.values()}),
)  # fmt: skip
"""What the scripts import once their command line is read, and with it the libraries and the models."""


class Forks:
    """Starts runs; close it when no more are to be started. Those on their way go on after that."""

    def __init__(self, modules: tuple[str, ...] = MODULES) -> None:
        """modules: loaded before the first run starts."""
        self._modules = modules
        self._connection: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._runs: list[Forked] = []
        self.lost = not POSSIBLE

    def start(self, command: list[str], log: Path, lock: TextIO, variables: dict[str, str]) -> RunProcess:
        """A Start (grid/processes.py): a fork where the command is one of this interpreter's."""
        if command[0] != sys.executable or self.lost:
            return Spawned(command, log, lock, variables)
        run = Forked(self, len(self._runs), command, log, lock, variables)
        self._runs.append(run)
        try:
            with log.open("ab") as file:
                order = {"run": run.number, "arguments": command[1:], "variables": variables, "folder": str(Path.cwd())}
                descriptors = [file.fileno(), lock.fileno()]
                socket.send_fds(self._connected(variables), [json.dumps(order).encode()], descriptors)
        except OSError:  # it ended, or an environment too large for a message
            self.lost = True
        return run

    def send(self, run: int, number: int) -> None:
        """Ask for a signal to a run."""
        with contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.send(json.dumps({"run": run, "signal": number}).encode())

    def listen(self) -> None:
        """Take in what is said of runs, without waiting."""
        while self._connection is not None and not self.lost:
            try:
                message = self._connection.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                message = b""
            if not message:
                self.lost = True
                return
            said: dict[str, Any] = json.loads(message)
            run = self._runs[said.pop("run")]
            if "pid" in said:
                run.pid = said["pid"]
            else:
                run.ended = Ended(**said)

    def close(self) -> None:
        """Start no more."""
        if self._connection is not None and self._server is not None:
            self._connection.close()
            self._connection = None
            self.lost = True
            self._server.wait()

    def _connected(self, variables: dict[str, str]) -> socket.socket:
        """To the server, which is started with the first run, and with its number of threads."""
        if self._connection is None:
            self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._server = subprocess.Popen(
                    # -P: what lies in the working directory does not count as a library.
                    [sys.executable, "-P", "-m", "grid.fork_server", str(theirs.fileno()), *self._modules],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=variables,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        return self._connection


class Forked:
    """One run. pid: None until the server is ready and has forked it."""

    def __init__(
        self, forks: Forks, number: int, command: list[str], log: Path, lock: TextIO, variables: dict[str, str]
    ):
        self.number = number
        self.pid: int | None = None
        self.ended: Ended | None = None
        self._forks = forks
        self._order = (command, log, lock, variables)
        self._instead: Spawned | None = None

    def poll(self) -> Ended | None:
        """None while it runs."""
        if self._instead is not None:
            return self._instead.poll()
        self._forks.listen()
        if self.ended is None and self._forks.lost:
            if self.pid is None:  # it never began
                self._instead = Spawned(*self._order)
            elif not _alive(self.pid):
                self.ended = Ended(1)  # with which code, nobody saw: its result tells
        return self.ended

    def send(self, number: int) -> None:
        """Send it a signal; nothing where it is gone."""
        if self._instead is not None:
            self._instead.send(number)
        elif self.poll() is None and self._forks.lost and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
        else:
            self._forks.send(self.number, number)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
