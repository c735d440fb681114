"""The cost of a run: a line when an attempt starts, and one when it ends. A killed runner writes no second line."""

from __future__ import annotations

import datetime
import socket
from pathlib import Path
from typing import Any

from storage.log import append_json_line, read_json_lines


def note_start(path: Path, threads: int) -> None:
    """Record the start of an attempt."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    append_json_line(path, {"started": now, "threads": threads, "host": socket.gethostname()})


def note_end(path: Path, seconds: float, code: int, cpu_seconds: float | None, peak_memory_gb: float | None) -> None:
    """Record the end of an attempt. code: its exit code."""
    line = {"seconds": round(seconds, 3), "code": code, "cpu_seconds": cpu_seconds, "peak_memory_gb": peak_memory_gb}
    append_json_line(path, line)


def read_cost(path: Path) -> dict[str, Any]:
    """All attempts together, with the keys of a result (results.py) and threads; None for what was not measured.

    seconds: of the attempts whose end was recorded. cpu_seconds: of all cores, which other load on the machine hardly
    changes. uninterrupted: there was one attempt. ended_well: all attempts ended with exit code 0.
    """
    lines = read_json_lines(path)
    starts = [line for line in lines if "started" in line]
    ends = [line for line in lines if "seconds" in line]
    seconds = [line["seconds"] for line in ends]
    cores = [line["cpu_seconds"] for line in ends if line.get("cpu_seconds") is not None]
    peaks = [line["peak_memory_gb"] for line in ends if line.get("peak_memory_gb") is not None]
    attempts = max(len(starts), len(ends))
    well = bool(ends) and len(ends) >= len(starts) and all(end.get("code") == 0 for end in ends)
    return {
        "seconds": round(sum(seconds), 3) if seconds else None,
        "cpu_seconds": round(sum(cores), 3) if cores else None,
        "attempts": attempts,
        "uninterrupted": well and attempts == 1,
        "ended_well": well,
        "peak_memory_gb": max(peaks, default=None),
        "threads": starts[-1].get("threads") if starts else None,
    }
