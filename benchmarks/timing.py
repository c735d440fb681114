"""Timings of alternating works, and memory in use. The best of each counts, so that ratios hold despite other load."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Work = Callable[[], object]


def add_clock(parser: argparse.ArgumentParser) -> None:
    """The option `--cpu_time`."""
    parser.add_argument(
        "--cpu_time", action="store_true", help="measure CPU seconds instead of wall time, on a busy machine"
    )


def memory_in_use(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmHWM (peak resident set), RssAnon (without pages of files).

    Not ru_maxrss, which a child inherits from its parent.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not report {field}: measure memory on Linux")


def timed(work: Work, cpu: bool = False) -> float:
    """Seconds of one call. cpu: of all threads of this process, instead of wall time."""
    clock = time.process_time if cpu else time.perf_counter
    started = clock()
    work()
    return clock() - started


def best_of(works: Mapping[str, Work], repeats: int, cpu: bool = False) -> dict[str, float]:
    """Least seconds of each work, which are also printed."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for kind, work in works.items():
            best[kind] = min(best[kind], timed(work, cpu))
    for kind, seconds in best.items():
        print(f"{kind:30s} {seconds:7.2f} s", flush=True)
    return best
