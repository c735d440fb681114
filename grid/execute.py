"""One run: a process of its own, with a log, a lock that it holds as long as it lives, and its cost measured."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shlex
import signal
import time
from pathlib import Path
from typing import Any, TextIO

from console.errors import InputError, explain_os_error
from grid.attempts import note_end, note_start
from grid.commands import Commands, write_config
from grid.places import Places, short
from grid.processes import Spawned, Start
from grid.results import collect
from grid.steps import PRUNE, Plan, Step
from grid.survey import has_result
from grid.version import REPOSITORY
from storage.atomic import write_json
from storage.lock import try_lock

STOPPED = tuple(code for number in (signal.SIGINT, signal.SIGTERM) for code in (-number, 128 + number))
"""Exit codes of a run that was asked to stop: it goes on another time."""

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Attempt:
    """A run on its way. The process holds the lock, too: where its runner is killed, no other starts the same run."""

    def __init__(
        self,
        step: Step,
        plan: Plan,
        places: Places,
        commands: Commands,
        threads: int,
        lock: TextIO,
        slot: int = 0,
        start: Start = Spawned,
    ):
        """Start it; InputError where its files cannot be written.

        lock: held already, and let go by `finish`. slot: which of the runner's places it takes, from 0.
        """
        self.step, self.slot, self._places, self._lock = step, slot, places, lock
        self._need = plan.by_id().get(step.needs or "")
        self._keep = plan.grid.keep_weights
        self._started = time.monotonic()
        prepare(step, places)
        command = commands(step, self._need)
        note_start(places.attempts(step.id), threads)
        try:
            with places.log(step.id).open("a") as log:
                log.write(f"$ {shlex.join(command)}\n")
            self._process = start(command, places.log(step.id), lock, environment(threads, slot))
        except OSError as error:
            raise explain_os_error(error, f"start {step.id}") from error

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        ended = self._process.poll()
        return None if ended is None else ended.code

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask it to save and end."""
        self._process.send(number)

    def finish(self) -> str | None:
        """Collect its result, once it ended; None when that is there, else why not, in a sentence."""
        ended = self._process.poll()
        assert ended is not None, "it runs"
        step, places, code = self.step, self._places, ended.code
        seconds = time.monotonic() - self._started
        try:
            note_end(places.attempts(step.id), seconds, code, ended.cpu_seconds, ended.peak_memory_gb)
            if collect(step, places, self._need, self._keep):
                places.failed(step.id).unlink(missing_ok=True)
                return None
            why = _why(code, places.log(step.id))
            if code not in STOPPED:
                note_failure(step, places, why)  # before the lock goes: another runner, which waits for it, looks here
            return why
        except InputError as error:
            if code not in STOPPED:
                note_failure(step, places, str(error))
            return str(error)
        finally:
            self._lock.close()


def run_here(step: Step, plan: Plan, places: Places, commands: Commands, threads: int) -> str | None:
    """Run one step to its end, after whoever works on it; None when its result is there, else why not.

    SIGTERM is passed on, so that the run saves what it has.
    """
    while (lock := take(step, places)) is None:
        time.sleep(1)
    need = plan.by_id().get(step.needs or "")
    done = step.kind != PRUNE and has_result(step, places)  # masks are asked for: their result alone is not enough
    if done or collect(step, places, need, plan.grid.keep_weights):
        lock.close()
        return None
    attempt = Attempt(step, plan, places, commands, threads, lock)
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, lambda number, _: attempt.stop(number))
    except ValueError:  # not the main thread: signals stay as they are
        before = None
    try:
        while attempt.poll() is None:
            time.sleep(0.1)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return attempt.finish()


def take(step: Step, places: Places) -> TextIO | None:
    """The lock of a step's work, or None where another runner (or a run whose runner was killed) has it."""
    return try_lock(places.lock(step.id), f"work in {places.of(step.id)}")


def environment(threads: int, slot: int = 0) -> dict[str, str]:
    """For a run: its share of the processor, and the toolkit's modules wherever the working directory is.

    Where CUDA_VISIBLE_DEVICES names several GPUs, each run gets one, by its slot.
    """
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    variables["OMP_NUM_THREADS"] = str(threads)
    devices = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if len(devices) > 1:
        variables["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return variables


def threads_each(jobs: int) -> int:
    """Threads of each of `jobs` runs: the cores divided, or OMP_NUM_THREADS where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, cores // jobs)
    return min(share, int(asked)) if asked.isdigit() and int(asked) > 0 else share


def _why(code: int, log: Path) -> str:
    """Why a run without a result ended."""
    if code == 0:
        return "it ended without writing its result"
    if code == -signal.SIGKILL:
        return "it was killed (signal 9), as the system does when memory runs out"
    return last_line(log) if code > 0 else f"it was ended by signal {-code}"


def last_line(log: Path) -> str:
    """What a run said last, without the terminal's colours."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")[-20_000:]
    except OSError:
        return "it ended without a word"
    lines = [CODES.sub("", line.split("\r")[-1]).strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith("$ ")), "it ended without a word")


def note_failure(step: Step, places: Places, why: str) -> None:
    """For `status`, and for other runners, which do not try it again at once; on a full disk there is no note."""
    now = datetime.datetime.now(datetime.UTC).timestamp()
    with contextlib.suppress(InputError):
        write_json(places.failed(step.id), {"time": now, "why": why, "log": short(places.log(step.id))})


def prepare(step: Step, places: Places) -> None:
    """Write the configuration; and an unfinished pruning for other sparsities is no start for this one."""
    write_config(step, places)
    if step.kind != PRUNE:
        return
    missing = places.missing_masks(step)
    asked = places.of(step.id) / "asked.json"
    before: Any = None
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(asked.read_text(encoding="utf-8"))
    if before is not None and before != missing:
        for file in (places.of(step.id) / "masks").glob("*/*_unfinished.safetensors"):
            file.unlink()
    write_json(asked, missing)
