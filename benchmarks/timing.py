"""Seconds of works that alternate: the best of each counts, so that ratios hold on a machine that is not quiet."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

Work = Callable[[], object]


def add_clock(parser: argparse.ArgumentParser) -> None:
    """The option by which CPU time is measured."""
    parser.add_argument(
        "--cpu_time", action="store_true", help="measure CPU seconds instead of wall time, on a busy machine"
    )


def timed(work: Work, cpu: bool = False) -> float:
    """Seconds of one call. cpu: of all threads of this process, instead of wall time."""
    clock = time.process_time if cpu else time.perf_counter
    started = clock()
    work()
    return clock() - started


def best_of(works: Mapping[str, Work], repeats: int, cpu: bool = False) -> dict[str, float]:
    """Least seconds of each work, printed."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for kind, work in works.items():
            best[kind] = min(best[kind], timed(work, cpu))
    for kind, seconds in best.items():
        print(f"{kind:30s} {seconds:7.2f} s", flush=True)
    return best
