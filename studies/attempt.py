"""One run: a process with a log, a lock that it holds until it ends, and a measured cost."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from console.cores import usable_cores
from console.errors import InputError, explain_os_error
from storage.atomic import write_json, write_text
from storage.lock import try_lock
from studies.attempts import note_end, note_start
from studies.collecting import collect, json_in, needed_done
from studies.commands import Commands, write_config
from studies.places import Places, short
from studies.plan import PRUNE, Plan, Step
from studies.process import Process
from studies.results import has_result
from studies.version import REPOSITORY

STOPPED = tuple(code for number in (signal.SIGINT, signal.SIGTERM) for code in (-number, 128 + number))
"""Exit codes of a run that was asked to stop, and will be resumed."""

CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Attempt:
    """A started process, of one run or of the same evaluation of several masks.

    It inherits their locks, so that after a killed runner no other one starts the same runs.
    """

    def __init__(
        self, steps: Sequence[tuple[Step, TextIO]], plan: Plan, places: Places, commands: Commands, threads: int,
        slot: int = 0,
    ):  # fmt: skip
        """Start it; InputError if its files cannot be written.

        steps: with their locks, held already, released by `finish`. slot: number among the runner's processes, from 0.
        """
        self.steps, self._locks = zip(*steps, strict=True)
        self.slot, self._plan, self._places = slot, plan, places
        self._started = time.monotonic()
        step, *others = self.steps
        for one in self.steps:
            prepare(one, places)
            note_start(places.attempts(one.id), threads)
        command = commands(step, plan.need(step), [(one, made) for one in others if (made := plan.need(one))])
        try:
            for one in others:
                write_text(places.log(one.id), f"evaluated with {step.id}, whose log is {short(places.log(step.id))}\n")
            with places.log(step.id).open("a") as log:
                log.write(f"$ {shlex.join(command)}\n")
                log.flush()
                held = [lock.fileno() for lock in self._locks]
                self._process = Process(command, environment(threads, slot), log.fileno(), log.fileno(), held)
        except OSError as error:
            raise explain_os_error(error, f"start {step.id}") from error

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.poll()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask the run to save and exit."""
        self._process.send_signal(number)

    def finish(self) -> list[tuple[Step, str | None]]:
        """Collect the results of the ended runs: None where there is one, else the reason why not, in a sentence."""
        code = self.poll()
        assert code is not None, "it runs"
        found = []
        try:
            for step in self.steps:
                found.append((step, why := self._collected(step, code)))
                if why is not None and code not in STOPPED and len(self.steps) == 1:  # of several, which failed?
                    note_failure(step, self._places, why)  # before the lock is released: waiting runners read it
            return found
        finally:
            for lock in self._locks:
                lock.close()

    def _collected(self, step: Step, code: int) -> str | None:
        places, cpu, share = self._places, self._process.cpu_seconds, 1 / len(self.steps)
        cpu = None if cpu is None else round(share * cpu, 3)
        try:
            seconds = share * (time.monotonic() - self._started)
            note_end(places.attempts(step.id), seconds, code, cpu, self._process.peak_memory_gb)
            if collect(step, places, self._plan):
                places.failed(step.id).unlink(missing_ok=True)
                return None
        except InputError as error:
            return str(error)
        return _why(code, places.log(self.steps[0].id))


def run_here(step: Step, plan: Plan, places: Places, commands: Commands, threads: int) -> str | None:
    """Wait until the step's lock is free, then run the step to its end; None if it has a result, else why not.

    SIGTERM is passed on, so that the run saves its state.
    """
    while (lock := take(step, places)) is None:
        time.sleep(1)
    needed = step.id in plan.users()  # then its masks or weights must exist, too
    there = needed_done(step, places, False) if needed else True
    if (has_result(step, places) and not needed) or (there and collect(step, places, plan)):
        lock.close()
        return None
    attempt = Attempt([(step, lock)], plan, places, commands, threads)
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, lambda number, _: attempt.stop(number))
    except ValueError:  # only the main thread can set signal handlers
        before = None
    try:
        while attempt.poll() is None:
            time.sleep(0.1)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return attempt.finish()[0][1]


def take(step: Step, places: Places) -> TextIO | None:
    """The lock of a step, or None if another runner (or a run whose runner was killed) holds it."""
    return try_lock(places.lock(step.id), f"work in {places.of(step.id)}")


def environment(threads: int, slot: int = 0) -> dict[str, str]:
    """For a run: its share of the processor, and the toolkit's modules wherever the working directory is.

    Where CUDA_VISIBLE_DEVICES names several GPUs, each run gets one, by its slot.
    """
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    variables["OMP_NUM_THREADS"] = str(threads)
    # glibc would return the memory of each layer's activations to the system, and fetch it again for the next one.
    variables = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)} | variables
    devices = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if len(devices) > 1:
        variables["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return variables


def threads_each(jobs: int) -> int:
    """Threads of each of `jobs` runs: the cores divided, or OMP_NUM_THREADS where that is less."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, usable_cores() // jobs)
    return min(share, int(asked)) if asked.isdigit() and int(asked) > 0 else share


def failure(step: Step, places: Places) -> dict[str, Any] | None:
    """The last failure of a step: {"time", "why", "log"}; None if it did not fail."""
    return json_in(places.failed(step.id))


def note_failure(step: Step, places: Places, why: str) -> None:
    """Record a failure for `status` and for other runners, which then do not repeat it; skipped on a full disk."""
    now = datetime.datetime.now(datetime.UTC).timestamp()
    with contextlib.suppress(InputError):
        write_json(places.failed(step.id), {"time": now, "why": why, "log": short(places.log(step.id))})


def prepare(step: Step, places: Places) -> None:
    """Write the configuration; remove the state of an unfinished pruning for other sparsities."""
    write_config(step, places)
    if step.kind != PRUNE:
        return
    missing, asked = places.missing(step), places.of(step.id) / "asked.json"
    before = json_in(asked)
    if before is not None and before != missing:
        for file in (places.of(step.id) / "masks").glob("*/*_unfinished.safetensors"):
            file.unlink()
    write_json(asked, missing)


def _why(code: int, log: Path) -> str:
    """Why a run without a result ended: the last line of its log, without the terminal's colours."""
    if code == 0:
        return "it ended without writing its result"
    if code == -signal.SIGKILL:
        return "it was killed (signal 9), as the system does when memory runs out"
    if code < 0:
        return f"it was ended by signal {-code}"
    lines = []
    with contextlib.suppress(OSError):
        text = log.read_text(encoding="utf-8", errors="replace")[-20_000:]
        lines = [CODES.sub("", line.split("\r")[-1]).strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line and not line.startswith("$ ")), "it ended without a message")
