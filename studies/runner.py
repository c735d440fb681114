"""Run the missing steps of a plan: several at once, continuing after failures, next to other runners, resumable.

One thread watches all runs. A step starts when the steps that it needs are done and its lock is free. If another runner
holds the lock, this runner takes other steps first, and waits in the end.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

from console.errors import InputError
from console.interrupt import interrupt
from console.progress import console, progress_bar
from console.words import agreed, counted
from storage.space import in_bytes
from studies.attempt import STOPPED, Attempt, failure, take
from studies.collecting import collect, needed_done, outcome
from studies.commands import Commands
from studies.grid import ZERO_SHOT
from studies.places import Places, short
from studies.plan import MAKES, PRUNE, Plan, Step
from studies.results import has_result
from studies.status import Survey, disk_free, survey

MANY = 16
"""With more evaluations than this, they are divided evenly among all processes from the start: an even load is then
worth more than loading the data once."""

LEAST_DISK = 50_000_000
"""Bytes of free disk space that a run needs to be started."""


@dataclass
class Summary:
    """done: ids finished now, by this runner or another one. failed: id -> why. left: ids not started.

    before: number of runs that were done before. stopped: whether the user stopped the runner.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    before: int = 0
    stopped: bool = False


@dataclass
class Runner:
    """jobs: runs at once. threads: of each run. hours: after which no run is started (None: no limit).

    pause: seconds between two looks at the runs. show: print a bar and failures.
    """

    plan: Plan
    places: Places
    commands: Commands
    jobs: int = 1
    threads: int = 1
    hours: float | None = None
    pause: float = 0.2
    show: bool = True

    def run(self) -> Summary:
        """Run steps until none is left that can run, or a stop is requested (Ctrl-C, SIGTERM)."""
        self._began, self._wall = time.monotonic(), time.time()
        self._users, self._steps = self.plan.users(), self.plan.by_id()
        found = survey(self.plan, self.places)
        self._summary = Summary(before=len(found.done))
        self._done = set(found.done)
        self._collect_finished(found)
        self._waiting: list[Step] = found.missing
        self._running: list[Attempt] = []
        self._beside: set[str] = set()
        self._alone: set[str] = set()
        with _listening(), progress_bar("runs", len(self.plan.steps), len(self._done), self.show) as advance:
            self._advance = advance
            try:
                while self._running or (self._waiting and not self._closing()):
                    self._reap()
                    if not self._closing():
                        self._start()
                    elif interrupt.requested:
                        self._stop()
                        break
                    time.sleep(self.pause)
            except KeyboardInterrupt:  # a second Ctrl-C
                self._stop(patience=2.0)
        self._summary.left = [step.id for step in self._waiting]
        self._summary.stopped = interrupt.requested
        return self._summary

    def _closing(self) -> bool:
        late = self.hours is not None and time.monotonic() - self._began > 3600 * self.hours
        return interrupt.requested or late

    def _collect_finished(self, found: Survey) -> None:
        """Write missing results of finished runs, started by another grid, a shell script or a killed runner."""
        for step in self.plan.steps:
            if step.id in found.done and not has_result(step, self.places):
                try:
                    collect(step, self.places, self.plan)
                except InputError as error:
                    self._summary.failed[step.id] = str(error)

    def _reap(self) -> None:
        for attempt in [attempt for attempt in self._running if attempt.poll() is not None]:
            self._running.remove(attempt)
            for step, why in attempt.finish():
                if why is None:
                    self._finished(step)
                elif len(attempt.steps) > 1 or (interrupt.requested and attempt.poll() in STOPPED):
                    self._waiting.insert(0, step)
                    self._alone.update(one.id for one in attempt.steps)  # so that a failure is of one mask
                else:
                    self._fail(step, why)

    def _start(self) -> None:
        """Start steps until `jobs` of them run, or none can start."""
        for step in list(self._waiting):
            if len(self._running) >= self.jobs:
                return
            if failed := next((name for name in step.before if name in self._summary.failed), None):
                self._waiting.remove(step)
                what = MAKES.get(self._steps[failed].kind, "teacher is")
                self._fail(step, f"its {what} missing, since {failed} failed")
                continue
            if step not in self._waiting or not self._done.issuperset(step.before):
                continue
            if taken := [(one, lock) for one in self._together(step) if (lock := self._taken(one)) is not None]:
                self._begin(taken)

    def _together(self, step: Step) -> list[Step]:
        """The step, and a part of the same evaluations of other masks that are there: one process loads data once.

        Only a part: the rest is for the runner's other free processes; with more than MANY evaluations, also for those
        that are busy now.
        """
        if not self._evaluates_mask(step):
            return [step]
        same = (step.model, step.weights, step.config)
        others = [
            one
            for one in self._waiting
            if self._evaluates_mask(one) and (one.model, one.weights, one.config) == same and one.id != step.id
        ]
        count = 1 + len(others)
        parts = self.jobs if count > MANY else self.jobs - len(self._running)
        return [step, *others[: -(-count // parts) - 1]]

    def _evaluates_mask(self, step: Step) -> bool:
        """Whether it is the zero-shot evaluation of a mask that is there, in a process that it may share."""
        made = step.kind == ZERO_SHOT and step.needs is not None and self._steps[step.needs].kind == PRUNE
        return made and self._done.issuperset(step.before) and step.id not in self._alone

    def _taken(self, step: Step) -> TextIO | None:
        """The lock of a step that is to be started; None where another runner has it, has finished it, or failed."""
        lock = None
        try:
            if (lock := take(step, self.places)) is None:
                if step.id not in self._beside:
                    self._beside.add(step.id)
                    self._advance(0, note=f"{len(self._beside)} run elsewhere")
                return None
            self._waiting.remove(step)
            if self._is_done(step):
                collect(step, self.places, self.plan)
                lock.close()
                self._finished(step)
                return None
            lately = failure(step, self.places)
            if lately is not None and step.id in self._beside and lately["time"] > self._wall:
                raise InputError(lately["why"])
            return lock
        except InputError as error:
            if lock is None:
                self._waiting.remove(step)
            else:
                lock.close()
            self._fail(step, str(error))
            return None

    def _begin(self, taken: list[tuple[Step, TextIO]]) -> None:
        """Start steps, with their locks, in one process."""
        try:
            free = disk_free(self.places)
            if free < LEAST_DISK:
                raise InputError(f"not started: the disk is full ({in_bytes(free)} free); free some space")
            slot = min(set(range(self.jobs)) - {attempt.slot for attempt in self._running})
            self._running.append(Attempt(taken, self.plan, self.places, self.commands, self.threads, slot))
            self._advance(0, note=taken[0][0].id)
        except InputError as error:
            for step, lock in taken:
                lock.close()
                self._fail(step, str(error))

    def _is_done(self, step: Step) -> bool:
        if step.id in self._users:
            return needed_done(step, self.places, all(user.id in self._done for user in self._users[step.id]))
        return has_result(step, self.places) or outcome(step, self.places) is not None

    def _finished(self, step: Step) -> None:
        self._done.add(step.id)
        self._summary.done.append(step.id)
        self._advance(1)

    def _fail(self, step: Step, why: str) -> None:
        self._summary.failed[step.id] = why
        self._advance(1)
        if self.show:
            console.print(f"failed: {step.id}: {why}", markup=False, highlight=False)

    def _stop(self, patience: float = 600.0) -> None:
        """Ask all runs to save and exit, and wait for them; the next start resumes them."""
        if self.show and self._running:
            console.print(f"stopping: {counted(len(self._running), 'run', 'saves')} and exits")
        for attempt in self._running:
            attempt.stop()
        until = time.monotonic() + patience
        while self._running and time.monotonic() < until:
            self._reap()
            time.sleep(self.pause)
        for attempt in self._running:
            self._waiting[:0] = attempt.steps


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM request a stop; on exit, the earlier signal handlers are restored."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    interrupt.requested = False
    interrupt.listen()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


def summary_lines(summary: Summary, places: Places) -> list[str]:
    """The summary in sentences, each failure with its log."""
    before = f"{summary.before} {agreed(summary.before, 'was')} done before"
    lines = [f"{counted(len(summary.done), 'run')} done, {before}, {len(summary.failed)} failed"]
    for run, why in summary.failed.items():
        log = places.log(run)
        lines.append(f"  failed  {run}: {why}" + (f"  (log: {short(log)})" if log.is_file() else ""))
    if summary.left:
        lines.append(f"{counted(len(summary.left), 'run', 'is')} left: the same command continues")
    lines.append(f"results: {short(places.pack)}")
    return lines
