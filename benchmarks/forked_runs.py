"""What a grid's runs cost when they are forked from one process with the libraries loaded, and begun from nothing.

    python -m benchmarks.forked_runs configs/experiments/smoke.yaml

The same grid twice, in temporary folders: processor seconds of all processes, the one that loads included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import tempfile
import time
from pathlib import Path

from console.command_line import Parser
from console.errors import InputError, run_command
from grid.commands import Machine, make_commands
from grid.execute import threads_each
from grid.forked import POSSIBLE, Forks
from grid.places import Places
from grid.processes import Spawned, Start
from grid.runner import Runner
from grid.schema import read_grid
from grid.steps import expand


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", nargs="?", default="configs/experiments/smoke.yaml", help="YAML file of a short grid")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: 1)")
    return parser.parse_args()


def measure(grid: str, jobs: int, start: Start, end: contextlib.AbstractContextManager[object]) -> dict[str, float]:
    """Seconds by the clock and of the processors, of one whole run of the grid."""
    with tempfile.TemporaryDirectory() as folder:
        places = Places(Path(folder) / "results", Path(folder) / "work", Path(grid).stem)
        plan = expand(read_grid(grid))
        commands = make_commands(places, Machine("cpu", None, None))
        began, before = time.monotonic(), _children()
        with end:
            summary = Runner(plan, places, commands, jobs, threads_each(jobs), show=False, start=start).run()
        if summary.failed:
            raise InputError(
                f"{len(summary.failed)} runs of {grid} failed, the first: {next(iter(summary.failed.values()))}"
            )
        return {"seconds": round(time.monotonic() - began, 2), "cpu_seconds": round(_children() - before, 2)}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure both ways, and print them with their ratio as JSON."""
    args = parse_args()
    if not POSSIBLE:
        raise InputError("only Linux forks runs: there is nothing to compare here")
    forks = Forks()
    found = {
        "spawned": measure(args.grid, args.jobs, Spawned, contextlib.nullcontext()),
        "forked": measure(args.grid, args.jobs, forks.start, contextlib.closing(forks)),
    }
    ratios = {name: round(found["forked"][name] / found["spawned"][name], 3) for name in found["forked"]}
    print(json.dumps({**found, "ratio": ratios}, indent=1))


if __name__ == "__main__":
    run_command(main)
