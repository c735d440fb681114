"""Run a grid of experiments: models x pruners x sparsities x tasks x seeds, from one YAML file.

    python experiments.py plan configs/experiments/smoke.yaml
    python experiments.py run configs/experiments/smoke.yaml --jobs 2
Stopped or killed at any moment, the same command goes on; several runners may work on one grid at once. `submit` gives
the same plan to SLURM, `shell` writes it as plain commands, `status` says how far it is, `report` makes its tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from console.command_line import Parser
from console.errors import InputError, run_command

MOST = 200


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    places = argparse.ArgumentParser(add_help=False)
    places.add_argument("--results", default="results", help="small result files (default: results)")
    places.add_argument("--work", default="runs/experiments", help="masks, logs, weights (default: runs/experiments)")
    machine = argparse.ArgumentParser(add_help=False)
    machine.add_argument("--accelerator", help="of pruning and finetuning: cpu, gpu, mps or auto")
    machine.add_argument("--num_workers", type=int, help="loader processes of each run")
    many = argparse.ArgumentParser(add_help=False)
    many.add_argument("--yes", action="store_true", help=f"even where more than --most runs are missing ({MOST})")
    many.add_argument("--most", type=int, default=MOST, help=argparse.SUPPRESS)

    def command(name: str, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about, parents=[places, *parents])

    plan = command("plan", "print the runs, what is done, and what is left in time and disk", machine)
    run = command("run", "run what is missing, one process a run", machine, many)
    shell = command("shell", "write what is missing as a shell script of plain commands", machine)
    submit = command("submit", "give what is missing to a cluster, as SLURM arrays", machine, many)
    status = command("status", "what is done, running and failed")
    collect = command("collect", "make results of finished work, for example of a shell script's")
    for parser_of_grid in (plan, run, shell, submit, collect):
        parser_of_grid.add_argument("grid", help="YAML file, as in configs/experiments/")
    status.add_argument("grid", nargs="?", help="YAML file (default: every grid with results)")
    for parallel in (plan, run):
        parallel.add_argument("--jobs", type=int, default=1, help="runs at once; they share the cores (default: 1)")
    run.add_argument("--hours", type=float, help="start nothing new after that; for work in several sittings")
    shell.add_argument("-o", "--output", help="file to write (default: the terminal)")
    submit.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: on this machine, to try")
    submit.add_argument("--partition", help="of SLURM")
    submit.add_argument("--minutes", type=int, default=24 * 60, help="limit of a run; it goes on in the next job")
    submit.add_argument("--gpus", type=int, default=0, help="of a run (default: 0)")
    submit.add_argument("--cores", type=int, default=4, help="of a run (default: 4)")
    submit.add_argument("--memory_gb", type=int, default=32, help="of a run (default: 32)")
    submit.add_argument("--parallel", type=int, default=64, help="runs at once at most (default: 64)")
    commands.add_parser("report", help="tables and pictures of the results", add_help=False)
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["report"]:  # it reads its own options
        return argparse.Namespace(command="report", arguments=arguments[1:])
    return parser.parse_args(arguments)


def main() -> None:
    """Do what the subcommand says."""
    args = parse_args()
    if args.command == "report":
        report(args.arguments)
        return
    from grid.actions import ACTIONS

    code = ACTIONS[args.command](args)
    if code:
        sys.exit(code)


def report(arguments: list[str]) -> None:
    """Hand over to `report/command.py`: its `main(arguments)` reads its own options."""
    folder = Path(__file__).parent / "report"
    if not folder.is_dir() or importlib.util.find_spec("report.command") is None:
        raise InputError("this version makes no reports: the results are in results/<grid>/<run>/result.json")
    importlib.import_module("report.command").main(arguments)


if __name__ == "__main__":
    run_command(main)
