"""Run a grid of experiments: models x pruners x sparsities x tasks x seeds, from one YAML file.

    python experiments.py plan configs/experiments/smoke.yaml
    python experiments.py run configs/experiments/smoke.yaml --jobs 2
Stopped or killed at any moment, the same command continues; several runners may work on one grid at once. `submit`
runs the plan on a SLURM cluster, `shell` writes it as plain commands, `status` shows progress, `report` makes tables.
The results of a grid are one file, results/<grid>.jsonl.xz.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.overrides import add_set
from console.command_line import Parser
from console.errors import InputError, run_command
from console.interrupt import interrupt
from console.results import result_console
from console.words import agreed, counted

if TYPE_CHECKING:
    from studies.commands import Commands
    from studies.places import Places
    from studies.plan import Plan
    from studies.runner import Summary
    from studies.status import Survey

MOST = 200
FAILED = 1


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument(
        "--results", default="results", help="folder of packed results, one file per grid (default: results)"
    )
    places.add_argument(
        "--work", default="runs/experiments", help="folder of masks, logs and weights (default: runs/experiments)"
    )
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--accelerator", help="accelerator of pruning and finetuning: cpu, gpu, mps or auto")
    machine.add_argument("--num_workers", type=int, help="data loader processes of each pruning and finetuning")
    many = argparse.ArgumentParser(add_help=False)
    many.add_argument("--yes", action="store_true", help=f"run even if more than {MOST} runs are missing")
    many.add_argument("--most", type=int, default=MOST, help=argparse.SUPPRESS)

    def command(name: str, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about, parents=[places, *parents])

    plan = command("plan", "print the number of runs, those done, and the time and disk still needed", machine)
    run = command("run", "start the missing runs", machine, many)
    shell = command("shell", "write the missing runs as a shell script of plain commands", machine)
    submit = command("submit", "submit the missing runs to a cluster, as SLURM arrays", machine, many)
    status = command("status", "print which runs are done, running and failed")
    collect = command("collect", "write and pack results of finished runs, such as those of a shell script")
    for parser_of_grid in (plan, run, shell, submit, collect):
        parser_of_grid.add_argument("grid", help="YAML file, as in configs/experiments/")
    status.add_argument("grid", nargs="?", help="YAML file (default: every grid with results)")
    for changeable in (plan, run, shell, submit, collect, status):
        add_set(changeable)
    for parallel in (plan, run):
        parallel.add_argument("--jobs", type=int, default=1, help="runs at once; they share the cores (default: 1)")
    run.add_argument("--hours", type=float, help="start no new run after this time; the same command runs the rest")
    shell.add_argument("-o", "--output", help="file to write (default: the terminal)")
    submit.add_argument(
        "--cluster", choices=("slurm", "local"), default="slurm", help="local runs the jobs on this machine, as a trial"
    )
    submit.add_argument("--partition", help="SLURM partition")
    submit.add_argument(
        "--minutes",
        type=int,
        default=24 * 60,
        help="time limit of a job; a run that exceeds it resumes in the next job (default: a day)",
    )
    submit.add_argument("--gpus", type=int, default=0, help="GPUs per run (default: 0)")
    submit.add_argument("--cores", type=int, default=4, help="CPU cores per run (default: 4)")
    submit.add_argument("--memory_gb", type=int, default=32, help="memory per run, in GB (default: 32)")
    submit.add_argument("--parallel", type=int, default=64, help="largest number of runs at once (default: 64)")
    report = command("report", "write tables, curves and a page of the results so far")
    report.add_argument(
        "results_of", nargs="+", metavar="GRID",
        help="YAML files of grids, packed results, folders of these, or folders that lmms-eval, lm-eval, VLMEvalKit or "
        "clip_benchmark wrote to",
    )  # fmt: skip
    report.add_argument("-o", "--output", help="folder (default: <results>/<grid>/report, report-only with --only)")
    report.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="TASK/METRIC",
        help="metrics of the main table (default: each task's main one)",
    )
    report.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="AXIS=VALUE,...",
        help="use only these results, such as pruner=omp,snip",
    )
    report.add_argument(
        "--pairs", nargs="+", default=[], metavar="ROW=ROW",
        help="rows to compare in tables/pairs, with p values; across tasks: ROW@TASK=ROW@TASK",
    )  # fmt: skip
    report.add_argument(
        "--loyalty", action="store_true", help="write tables/loyalty: how often a row agrees with the dense model"
    )
    report.add_argument(
        "--cost", default="seconds", help="cost axis of the Pareto plot: seconds, cpu_seconds or peak_memory_gb"
    )
    report.add_argument("--published", metavar="FILE.csv", help="compare with published numbers (studies/published.py)")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the subcommand."""
    args = parse_args()
    for option in ("results", "work"):
        if Path(getattr(args, option)).is_file():
            raise InputError(f"--{option} {getattr(args, option)} is a file: name a folder")
    commands = {
        "plan": plan, "run": run, "shell": shell, "submit": submit, "status": status, "collect": collect,
        "report": report,
    }  # fmt: skip
    if code := commands[args.command](args):
        sys.exit(code)


# -- commands: each returns the exit code ---------------------------------------------------------------


def plan(args: argparse.Namespace) -> int:
    """Print the plan as a table."""
    from studies.status import print_plan

    study = opened(args, args.grid)
    print_plan(study.plan, study.places, study.found, positive(args, "jobs"))
    study.check_configs()
    return 0


def run(args: argparse.Namespace) -> int:
    """Print the plan, run it, and print how the runs ended."""
    from studies.attempt import threads_each
    from studies.runner import Runner
    from studies.status import print_plan

    study, jobs = opened(args, args.grid), positive(args, "jobs")
    if args.hours is not None and not args.hours > 0:
        raise InputError(f"--hours must be above 0, not {args.hours:g}")
    print_plan(study.plan, study.places, study.found, jobs)
    study.check_ready(args)
    study.pack()
    try:
        runner = Runner(study.plan, study.places, study.commands(args), jobs, threads_each(jobs), args.hours)
        summary = runner.run()
    finally:
        study.pack()
    print_summary(summary, study.places)
    if summary.stopped:
        return interrupt.code
    return FAILED if summary.failed else 0


def shell(args: argparse.Namespace) -> int:
    """Write the missing runs as a script."""
    from storage.atomic import check_writable, write_text
    from studies.shell import shell_script

    study = opened(args, args.grid)
    check_writable(study.places.work)
    study.check_configs()
    text = shell_script(study.plan, study.places, study.commands(args), study.found.missing, named(args))
    if not args.output:
        print(text, end="")
        return 0
    write_text(args.output, text)
    Path(args.output).chmod(0o755)
    runs = counted(len(study.found.missing), "run")
    result_console().print(f"{runs} in {args.output}: sh {shlex.quote(args.output)}", markup=False)
    return 0


def submit(args: argparse.Namespace) -> int:
    """Submit the missing runs as jobs."""
    from studies.cluster import make_executor, submit_steps
    from studies.runner import Summary
    from studies.status import print_plan

    study = opened(args, args.grid)
    for option in ("cores", "memory_gb", "minutes"):
        positive(args, option)
    print_plan(study.plan, study.places, study.found, positive(args, "parallel"))
    study.check_ready(args)
    make_executor(study.places, args)  # fails without a cluster, before any file is written
    study.pack()
    jobs = submit_steps(study.plan, study.places, study.commands(args), study.found.missing, args)
    if args.cluster == "slurm":
        words = f"{counted(len(jobs), 'job')} submitted; `experiments.py status {named(args)}` shows their progress"
        result_console().print(words, markup=False)
        return 0
    study.pack()
    failed = {run: why for run, why in jobs.items() if why is not None}
    done = [run for run in jobs if run not in failed]
    print_summary(Summary(done, failed, before=len(study.found.done)), study.places)
    return FAILED if failed else 0


def status(args: argparse.Namespace) -> int:
    """Print the progress of one grid, or of every grid with results."""
    from studies.grid import PACKED
    from studies.status import print_plan, print_status

    grids = [args.grid] if args.grid else sorted(map(str, Path(args.results).glob(f"*{PACKED}")))
    if not grids:
        raise InputError(f"there are no results in {args.results}: name a grid, or run one first")
    for grid in grids:
        study = opened(args, grid)
        print_plan(study.plan, study.places, study.found)
        print_status(study.plan, study.places, study.found)
    return 0


def collect(args: argparse.Namespace) -> int:
    """Write and pack the results of finished runs."""
    from studies import collecting
    from studies.places import short
    from studies.results import has_result
    from studies.status import survey

    study = opened(args, args.grid)
    places = study.places
    old = {step.id for step in study.plan.steps if has_result(step, places)}
    new = [step for step in study.plan.steps if step.id not in old and collecting.collect(step, places, study.plan)]
    study.pack()
    missing = survey(study.plan, places).missing
    count = counted(len(new), "new result")
    result_console().print(f"{count} in {short(places.pack)}, {counted(len(missing), 'run')} missing", markup=False)
    return FAILED if missing else 0


def report(args: argparse.Namespace) -> int:
    """Write tables and pictures of some grids' results."""
    from studies.report import write_report

    notes = []
    for grid in args.results_of:
        if Path(grid).suffix in (".yaml", ".yml") and (missing := opened(args, grid).found.missing):
            notes.append(
                f"{counted(len(missing), 'run')} of {grid} {agreed(len(missing), 'is')} missing: "
                f"`experiments.py status {grid}` counts them"
            )
    write_report(args, notes)
    return 0


# -- shared by the commands -----------------------------------------------------------------------------


@dataclass
class Study:
    """A grid with its plan and the state of its runs. text: the content of its file."""

    plan: Plan
    places: Places
    found: Survey
    text: str

    def commands(self, args: argparse.Namespace) -> Commands:
        """Command lines for this machine."""
        from studies.commands import ScriptCommands

        return ScriptCommands(self.places, args.accelerator, args.num_workers)

    def check_configs(self) -> None:
        """InputError for a configuration that the script of a missing run would reject."""
        from studies.plan import apart, check_configs

        if self.found.missing:
            apart(check_configs, self.found.missing, self.plan.grid.path)

    def check_ready(self, args: argparse.Namespace) -> None:
        """InputError when the runs cannot start, or are too many to start without --yes."""
        from storage.atomic import check_writable

        missing = self.found.missing
        if len(missing) > args.most and not args.yes:
            raise InputError(
                f"{counted(len(missing), 'run')} of {self.plan.grid.path} {agreed(len(missing), 'is')} missing, more "
                f"than {args.most}: give --yes to run them all, or take a smaller grid"
            )
        for step in missing:
            if step.model in self.plan.missing:
                raise InputError(self.plan.missing[step.model])
        check_writable(self.places.work)
        check_writable(self.places.results)
        self.check_configs()

    def pack(self) -> None:
        """Pack the results into the grid's file."""
        from studies.results import pack

        pack(self.places, self.text)


def opened(args: argparse.Namespace, grid: str) -> Study:
    """Read the grid (a YAML file, or packed results), expand it, and find which runs are done."""
    from studies.grid import grid_name
    from studies.places import Places
    from studies.plan import apart, plan_of
    from studies.status import survey

    places = Places(Path(args.results), Path(args.work), grid_name(Path(grid)))
    plan, text = apart(plan_of, grid, places.hashes, getattr(args, "set", ()))
    return Study(plan, places, survey(plan, places), text)


def print_summary(summary: Summary, places: Places) -> None:
    """Print how the runs ended."""
    from studies.runner import summary_lines

    for line in summary_lines(summary, places):
        result_console().print(line, markup=False, highlight=False)


def named(args: argparse.Namespace) -> str:
    """The grid and its `--set`, as words of a command line."""
    return shlex.join([args.grid, *(word for assignment in args.set for word in ("--set", assignment))])


def positive(args: argparse.Namespace, option: str) -> int:
    """The value of an option; InputError below 1."""
    number = getattr(args, option)
    if number < 1:
        raise InputError(f"--{option} must be at least 1, not {number}")
    return number


if __name__ == "__main__":
    run_command(main)
