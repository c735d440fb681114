"""Load MODULES, then fork a run for each order: `python -P -m grid.fork_server DESCRIPTOR MODULES` (grid/forked.py).

A child goes on as if it were the script: it leaves `main` the ordinary way, so that all that libraries do at exit is
done. The server ends when the runner does; its children go on.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from typing import Any

from grid.processes import measured

TICK = 0.05
"""Seconds between two looks at the children."""


def main() -> None:
    """Serve; in a child, be the run."""
    connection = socket.socket(fileno=int(sys.argv[1]))
    if not load(sys.argv[2:]):
        return
    order = serve(connection)
    if order is not None:
        arguments = become(order)
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")


def load(modules: list[str]) -> bool:
    """Import the modules; False where forks would not work: CUDA's driver does not survive one."""
    import torch

    if torch.cuda.device_count():
        return False
    for name in modules:
        importlib.import_module(name)
    return True


def serve(connection: socket.socket) -> dict[str, Any] | None:
    """Fork for each order and tell how it ended. Returns its order in a child, None when the runner is gone."""
    children: dict[int, int] = {}
    with connection:
        while True:
            if select.select([connection], [], [], TICK if children else None)[0]:
                try:
                    message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
                except ConnectionError:
                    return None
                if not message:
                    return None
                order = json.loads(message)
                if "signal" in order:
                    for pid in [pid for pid, run in children.items() if run == order["run"]]:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, order["signal"])
                else:
                    pid = os.fork()
                    if pid == 0:
                        return {**order, "descriptors": descriptors}
                    for descriptor in descriptors:  # the child's alone: it is what holds the lock
                        os.close(descriptor)
                    children[pid] = order["run"]
                    tell(connection, run=order["run"], pid=pid)
            reap(connection, children)


def reap(connection: socket.socket, children: dict[int, int]) -> None:
    """Tell of the children that ended."""
    while children:
        pid, status, used = os.wait4(-1, os.WNOHANG)
        if not pid:
            return
        ended = measured(status, used)
        tell(connection, run=children.pop(pid), **vars(ended))


def tell(connection: socket.socket, **what: object) -> None:
    """Say it to the runner, where it is still there."""
    with contextlib.suppress(OSError):
        connection.send(json.dumps(what).encode())


def become(order: dict[str, Any]) -> list[str]:
    """In a child: take on the run's output, environment and folder, in a session of its own. Returns its arguments."""
    log, _lock = order["descriptors"]
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(order["variables"])
    os.chdir(order["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return order["arguments"]


if __name__ == "__main__":
    main()
