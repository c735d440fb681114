"""Start commands in processes that need not import the libraries: they are forked from one that did so once.

Importing takes a run four to seven seconds of a core, often more than its own work, and a grid has hundreds of runs.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = (
    "lightning.fabric.strategies", "matplotlib.figure", "timm", "torchvision.transforms.v2",
    "transformers.models.bert.modeling_bert",
)  # fmt: skip
"""What most commands import. None of the toolkit's modules: they look at the terminal when they are imported."""

MOST = 250
"""File descriptors in a message; Linux allows 253."""

HEADER = struct.Struct("II")
"""Of each message with descriptors: the length of the request in bytes, and how many such messages come before it."""

_SENDING = threading.Lock()


class Process:
    """A started command, in a session of its own, without input. pid: of the command. returncode: None while it runs.

    cpu_seconds: of all its threads and ended children. peak_memory_gb: of the largest one. Both None until it ended.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        output: int,
        errors: int,
        keep: Sequence[int] = (),
        folder: str | Path = ".",
    ):
        """Start it; OSError if it cannot be started.

        output, errors: file descriptors. keep: further ones that it holds until it ends, such as locks.
        """
        mine, theirs = os.pipe()
        self._status = os.fdopen(mine)
        wanted = {"command": list(command), "environment": dict(environment), "folder": str(Path(folder).resolve())}
        request, descriptors = json.dumps(wanted).encode(), [theirs, output, errors, *keep]
        parts = [descriptors[start : start + MOST] for start in range(0, len(descriptors), MOST)]
        try:
            with _SENDING:
                server = _server(environment)[0]
                for part in parts:
                    socket.send_fds(server, [HEADER.pack(len(request), len(parts))], part)
                server.sendall(request)
        finally:
            os.close(theirs)
        self.returncode: int | None = None
        self.cpu_seconds: float | None = None
        self.peak_memory_gb: float | None = None
        if not (first := self._status.readline()):
            raise OSError(f"cannot start {command[0]}: the process that starts others ended")
        self.pid = int(first)

    def poll(self) -> int | None:
        """The exit code, negative for a signal, None while it runs."""
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code; None if it still runs after `timeout` seconds."""
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            end = self._status.readline()
            lost = (-signal.SIGKILL, None, None)  # the process that waits for it was killed
            self.returncode, self.cpu_seconds, self.peak_memory_gb = json.loads(end) if end else lost
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.kill(self.pid, number)


def serve(channel: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each request; returns the request in a forked one, None at the end of the one that asks."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system reaps those that wait for the commands
    while True:
        header, held, *_ = socket.recv_fds(channel, HEADER.size, MOST)
        if not header:
            return None
        length, parts = HEADER.unpack(header)
        for _ in range(parts - 1):
            held += socket.recv_fds(channel, HEADER.size, MOST)[1]
        request = json.loads(channel.recv(length, socket.MSG_WAITALL))
        if _is_script(request["command"]):
            _import_libraries()
        if os.fork() == 0:
            channel.close()
            return _forked(request, *held)
        for descriptor in held:
            os.close(descriptor)


def _forked(request: dict[str, Any], status: int, output: int, errors: int, *kept: int) -> dict[str, Any]:
    """Fork once more: one process returns and runs the command, this one waits for it and says how it ended.

    So the command has a parent that outlives the runner, and its cost is measured whatever ends it.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    number = os.fork()
    if number == 0:
        os.close(status)
        os.setsid()  # Ctrl-C is passed on once, by the runner
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, stream in ((nothing, 0), (output, 1), (errors, 2)):
            os.dup2(descriptor, stream)
        for descriptor in {nothing, output, errors} - {0, 1, 2}:
            os.close(descriptor)
        return request
    for descriptor in (output, errors, 2, *kept):  # with 2 open, what reads the runner's errors would wait for the run
        os.close(descriptor)
    try:
        os.write(status, b"%d\n" % number)
        _, ended, used = os.wait4(number, 0)
        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
        cost = [round(used.ru_utime + used.ru_stime, 3), round(used.ru_maxrss * unit / 1e9, 3)]
        os.write(status, json.dumps([os.waitstatus_to_exitcode(ended), *cost]).encode() + b"\n")
    except BrokenPipeError:  # the runner was killed
        os.wait4(number, 0)
    os._exit(0)


def run(command: list[str], environment: dict[str, str], folder: str) -> None:
    """Become the command: a Python script or module here, anything else in place of this program."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if not _is_script(command):
        os.execvpe(command[0], command, environment)
    if "torch" in sys.modules and environment.get("OMP_NUM_THREADS", "").isdigit():
        sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.modules.pop("studies", None)  # of this module: a script of another copy of the toolkit imports its own
    _, script, *arguments = command
    paths = environment.get("PYTHONPATH", "")
    if script == "-m":
        sys.argv, sys.path[0:1] = ["-m", *arguments[1:]], [folder, *filter(None, paths.split(os.pathsep))]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        home = str(Path(script).resolve().parent)
        sys.argv, sys.path[0:1] = [script, *arguments], [home, *filter(None, paths.split(os.pathsep))]
        runpy.run_path(script, run_name="__main__")


def _is_script(command: Sequence[str]) -> bool:
    """Whether a forked process can run it. On macOS libraries do not survive a fork."""
    python = len(command) > 1 and command[0] == sys.executable and sys.platform == "linux"
    return python and (command[1] == "-m" or command[1].endswith(".py"))


@functools.cache
def _import_libraries() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # a collection in a forked process would copy the pages of all these objects


_SERVERS: dict[str, tuple[socket.socket, subprocess.Popen[bytes]]] = {}


def _server(environment: Mapping[str, str]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The process that forks others, one for each number of threads, which libraries read when they are imported."""
    threads = environment.get("OMP_NUM_THREADS", "")
    if threads not in _SERVERS or _SERVERS[threads][1].poll() is not None:
        mine, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "studies.process", str(theirs.fileno())],
                cwd=Path(__file__).parent.parent,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        _SERVERS[threads] = mine, process
    return _SERVERS[threads]


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        wanted = serve(asked)
    if wanted is not None:
        run(**wanted)
