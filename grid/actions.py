"""What each subcommand of experiments.py does; every one returns the exit code."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from console.errors import InputError
from console.interrupt import interrupt
from console.results import result_console
from console.words import agreed, counted
from grid import runner
from grid.check import check_configs
from grid.cluster import Queue, make_executor, submit
from grid.commands import Commands, Machine, make_commands
from grid.execute import threads_each
from grid.identity import Sources
from grid.places import Places, short
from grid.results import collect
from grid.schema import read_grid
from grid.shell import shell_script
from grid.show import print_plan, print_status
from grid.steps import Plan, Step, expand
from grid.survey import Survey, has_result, survey
from storage.atomic import check_writable, write_text

FAILED = 1


@dataclass
class Session:
    """A grid that was read and looked at."""

    plan: Plan
    places: Places
    sources: Sources
    found: Survey

    def commands(self, args: argparse.Namespace) -> Commands:
        """Command lines for this machine."""
        return make_commands(self.places, Machine(args.accelerator, args.num_workers))

    def check_ready(self, args: argparse.Namespace) -> None:
        """InputError where the runs could not even start, or are more than one may have meant."""
        missing = self.found.missing
        if len(missing) > args.most and not args.yes:
            raise InputError(
                f"{counted(len(missing), 'run')} of {self.plan.grid.path} {agreed(len(missing), 'is')} missing, more "
                f"than {args.most}: give --yes to run them all, or take a smaller grid"
            )
        for step in missing:
            if step.model in self.sources.missing:
                raise InputError(self.sources.missing[step.model])
        check_writable(self.places.work)
        check_writable(self.places.folder)
        if missing:
            check_configs(self.plan, missing)


def begin(args: argparse.Namespace, grid: str) -> Session:
    """Read the grid, expand it, and look at what is there."""
    for option in ("results", "work"):
        if Path(getattr(args, option)).is_file():
            raise InputError(f"--{option} {getattr(args, option)} is a file: name a folder")
    places = Places(Path(args.results), Path(args.work), Path(grid).stem)
    sources = Sources(places.hashes)
    plan = expand(read_grid(grid), sources)
    return Session(plan, places, sources, survey(plan, places))


def show_plan(args: argparse.Namespace) -> int:
    """The plan as a table."""
    session = begin(args, args.grid)
    print_plan(session.plan, session.places, session.found, session.sources, positive(args.jobs))
    if session.found.missing:
        check_configs(session.plan, session.found.missing)
    return 0


def run(args: argparse.Namespace) -> int:
    """The plan, the runs, and what became of them."""
    session = begin(args, args.grid)
    jobs = positive(args.jobs)
    if args.hours is not None and not args.hours > 0:
        raise InputError(f"--hours must be above 0, not {args.hours:g}")
    print_plan(session.plan, session.places, session.found, session.sources, jobs)
    session.check_ready(args)
    keep_grid(session)
    summary = runner.Runner(
        session.plan, session.places, session.commands(args), jobs, threads_each(jobs), args.hours
    ).run()
    screen = result_console()
    for line in runner.tell(summary, session.places):
        screen.print(line, markup=False, highlight=False)
    if summary.stopped:
        return interrupt.code
    return FAILED if summary.failed else 0


def write_shell(args: argparse.Namespace) -> int:
    """What is missing, as a script."""
    session = begin(args, args.grid)
    check_writable(session.places.work)
    text = shell_script(session.plan, session.places, session.commands(args), session.found.missing)
    if args.output:
        write_text(args.output, text)
        Path(args.output).chmod(0o755)
        result_console().print(
            f"{counted(len(session.found.missing), 'run')} in {args.output}: sh {shlex.quote(args.output)}"
        )
    else:
        print(text, end="")
    return 0


def submit_jobs(args: argparse.Namespace) -> int:
    """The plan, as jobs."""
    session = begin(args, args.grid)
    print_plan(session.plan, session.places, session.found, session.sources, positive(args.parallel))
    session.check_ready(args)
    queue = Queue(
        args.cluster, args.minutes, args.partition, args.gpus, args.cores, args.memory_gb, positive(args.parallel)
    )
    make_executor(session.places, queue)  # there is none without a cluster: nothing is to be left behind then
    keep_grid(session)
    found = submit(session.plan, session.places, session.commands(args), session.found.missing, queue)
    screen = result_console()
    if args.cluster == "slurm":
        screen.print(
            f"{counted(len(found), 'job')} submitted; `experiments.py status {args.grid}` says how far they are"
        )
        return 0
    failed = {run: why for run, why in found.items() if why is not None}
    summary = runner.Summary([run for run in found if run not in failed], failed, before=len(session.found.done))
    for line in runner.tell(summary, session.places):
        screen.print(line, markup=False, highlight=False)
    return FAILED if failed else 0


def show_status(args: argparse.Namespace) -> int:
    """How far one grid is, or every grid that was begun."""
    grids = [args.grid] if args.grid else sorted(str(path) for path in Path(args.results).glob("*/*.yaml"))
    if not grids:
        raise InputError(f"there are no results in {args.results}: name a grid, or run one first")
    for grid in grids:
        session = begin(args, grid)
        print_plan(session.plan, session.places, session.found, session.sources, jobs=1)
        print_status(session.plan, session.places, session.found)
    return 0


def collect_results(args: argparse.Namespace) -> int:
    """Results of work that is finished."""
    session = begin(args, args.grid)
    keep_grid(session)
    steps = session.plan.by_id()
    new: list[Step] = []
    for step in session.plan.steps:
        if not has_result(step, session.places) and collect(
            step, session.places, steps.get(step.needs or ""), session.plan.grid.keep_weights
        ):
            new.append(step)
    missing = survey(session.plan, session.places).missing
    result_console().print(
        f"{counted(len(new), 'new result')} in {short(session.places.folder)}/, {counted(len(missing), 'run')} missing"
    )
    return FAILED if missing else 0


def keep_grid(session: Session) -> None:
    """The grid's file beside its results, so that they can be read without the repository."""
    source, copy = Path(session.plan.grid.path), session.places.folder / f"{session.places.grid}.yaml"
    if source.absolute() != copy.absolute():
        write_text(copy, source.read_text(encoding="utf-8"))


def positive(number: int) -> int:
    """InputError for a number of jobs that is none."""
    if number < 1:
        raise InputError(f"--jobs and --parallel must be at least 1, not {number}")
    return number


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": show_plan,
    "run": run,
    "shell": write_shell,
    "submit": submit_jobs,
    "status": show_status,
    "collect": collect_results,
}
"""Subcommand -> what it does."""
