"""Weights & Biases, on request: losses and rates, metrics of every epoch, the final results.

Only the first process logs, and the library is imported only on request. The run's id is in the output folder, so that
a resumed run continues it. A missing login or network is an InputError before training; later logging errors do not end
the run.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from configs.overrides import joined_keys
from console.errors import InputError
from console.progress import console
from storage.atomic import write_text

PROJECT = "vlm-pruning"
ID_FILE = "wandb_id.txt"
START_SECONDS, FINISH_SECONDS = 30.0, 120.0  # seconds to wait for a server


class WandbLog:
    """A started run, or None: without a run every method returns at once."""

    def __init__(self, run: Any = None):
        self._run = run

    def training(self, row: Mapping[str, Any]) -> None:
        """A row of log.jsonl: step, lr and mean losses."""
        values = {name: value for name, value in row.items() if name != "step"}
        self._safely(lambda run: run.log(flat({"train": values}), step=row["step"]))

    def epoch(self, number: int, metrics: Mapping[str, Any], step: int) -> None:
        """The validation split's numbers after an epoch."""
        self._safely(lambda run: run.log({"epoch": number, **flat({"val": metrics})}, step=step))

    def results(self, results: Mapping[str, Any]) -> None:
        """The numbers of results.json, into the run's summary."""
        found = {"test": results["metrics"], **{key: results[key] for key in ("epoch", "kept", "seconds", "machine")}}
        self._safely(lambda run: run.summary.update(flat(found)))

    def close(self, failed: bool = False) -> None:
        """End the run and send the rest; an interrupted run may be resumed later."""
        self._safely(lambda run: run.finish(exit_code=int(failed)))
        self._run = None

    def _safely(self, call: Callable[[Any], Any]) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:  # any error of the service: a curve is not worth hours of training
            self._run = None
            console.print(f"Weights & Biases failed ({first_line(error)}); the run continues without it", markup=False)


def start_wandb(
    fabric: Fabric, folder: Path, wanted: bool, offline: bool, name: str | None, config: Mapping[str, Any]
) -> WandbLog:
    """Start a run, or resume the one whose id is in `folder`; call it on every process.

    wanted: online, which needs a login. offline: write to `folder` only. name: of the run; the folder's by default.
    InputError, on every process, without a login or an answer.
    """
    if not (wanted or offline):
        if name and fabric.is_global_zero:
            console.print("--experiment_name names a run of Weights & Biases: add --wandb, or leave it out")
        return WandbLog()
    run, problem = None, None
    if fabric.is_global_zero:
        try:
            run = _start(folder, offline, name or folder.name, config)
        except InputError as error:
            problem = str(error)
    problem = fabric.broadcast(problem)  # the other processes must not wait for one that has failed
    if problem is not None:
        raise InputError(problem)
    return WandbLog(run)


def _start(folder: Path, offline: bool, name: str, config: Mapping[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError("--wandb needs the package wandb: pip install -r deps/requirements.txt") from error
    offline = offline or os.environ.get("WANDB_MODE") in ("offline", "dryrun")
    way_out = "run `wandb login` or set WANDB_API_KEY, log offline with --wdb_offline, or leave --wandb out"
    settings = wandb.Settings(
        console="off",  # the terminal belongs to the progress bar
        silent=True,
        save_code=False,
        init_timeout=START_SECONDS,
        finish_timeout=FINISH_SECONDS,
    )
    try:
        wandb.setup(wandb.Settings(silent=True))  # otherwise login prints the user's name, which it requests online
        if not offline and not wandb.login(prompt=False, verify=False):
            raise InputError(f"--wandb finds no login to Weights & Biases: {way_out}")
        identity = run_id(folder)
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=name,
            id=identity,
            resume=None if offline else "allow",  # `wandb sync` joins offline runs by their id
            dir=str(folder),
            mode="offline" if offline else "online",
            config=dict(config),
            settings=settings,
        )
    except (wandb.Error, OSError, TimeoutError) as error:
        raise InputError(f"Weights & Biases cannot be started ({first_line(error)}): {way_out}") from error
    where = f"offline in {folder / 'wandb'}; `wandb sync` sends it later" if offline else run.url
    console.print(f"Weights & Biases: run {identity}, {where}", markup=False)
    return run


def run_id(folder: Path) -> str:
    """The id in the folder, made on first use; not drawn with the run's seed, which must not change other draws."""
    path = folder / ID_FILE
    known = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    if not known:
        known = uuid.uuid4().hex[:8]
        write_text(path, known + "\n")
    return known


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested numbers and texts under names joined by slashes; lists and None are left out."""
    return {name: value for name, value in joined_keys(values, "/").items() if isinstance(value, int | float | str)}


def first_line(error: Exception) -> str:
    """The start of an error's text, without the full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
