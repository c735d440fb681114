"""The state of a plan, as tables on the terminal: runs done and missing, time left, disk needed."""

from __future__ import annotations

import shutil
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from rich.markup import escape
from rich.table import Table

from console.results import result_console
from console.words import agreed, counted
from storage.lock import try_lock
from storage.space import in_bytes
from studies.attempt import failure
from studies.collecting import is_done, needed_done
from studies.grid import PACKED, ZERO_SHOT
from studies.places import Places, short
from studies.plan import Plan, Step
from studies.results import all_records, in_short, read_records
from studies.version import difference, version


@dataclass
class Survey:
    """done: ids. missing: steps to do, in the plan's order. notes: on results that are not used."""

    done: set[str] = field(default_factory=set)
    missing: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def survey(plan: Plan, places: Places) -> Survey:
    """The state of every step: done if it has a result, or a finished run that only has to be collected."""
    users = plan.users()
    done = {step.id for step in plan.steps if step.id not in users and is_done(step, places)}
    for step in plan.steps:
        if step.id in users and needed_done(step, places, all(user.id in done for user in users[step.id])):
            done.add(step.id)
    missing = [step for step in plan.steps if step.id not in done]
    return Survey(done, missing, _notes({step.id for step in plan.steps}, places))


def _notes(known: set[str], places: Places) -> list[str]:
    """Notes on results in the grid's files that are of another version or of no step."""
    versions: Counter[str] = Counter()
    strangers = 0
    for record in all_records(places):
        if record.result["version"] != version():
            versions[difference(record.result["version"])] += 1
        elif record.result["id"] not in known:
            strangers += 1
    notes = [
        f"{counted(count, 'result')} of another version ({which}) {agreed(count, 'is')} not used: {places.pack}"
        for which, count in versions.items()
    ]
    if strangers:
        notes.append(
            f"{counted(strangers, 'result')} of no run of this grid (of an earlier version of its file, or of weights "
            f"that are not here?) {agreed(strangers, 'is')} not used"
        )
    return notes


def times_of(places: Places) -> dict[str, float]:
    """`Step.like` -> median seconds of finished runs, in all grids: any seed and mask."""
    whole: dict[str, list[float]] = defaultdict(list)
    results = [result for path in places.results.glob(f"*{PACKED}") for result in in_short(path).values()]
    for path in places.loose.parent.glob("*/*.jsonl"):
        results += [record.result for record in read_records(path)]
    for result in results:
        if result["seconds"] is not None and result["uninterrupted"]:
            whole[result["like"]].append(result["seconds"])
    return {like: statistics.median(seconds) for like, seconds in whole.items()}


def disk_needed(plan: Plan, missing: list[Step], jobs: int) -> int:
    """Estimate of the bytes that the missing steps leave, and that `jobs` of them need while they run."""
    left, training = 0.0, []
    for step in missing:
        size = plan.weights.get(step.model, 0)
        if step.makes:
            left += size * plan.mask_bytes[step.pruner] * len(step.sparsities)
        elif step.kind != ZERO_SHOT:
            left += 2 * size * plan.grid.file.keep_weights  # the best epoch and the last
            left += size / 32 * step.while_training  # its mask, a bit a weight
            training.append(size)
    # A run needs twice a snapshot: weights and two moments of Adam. The old one is removed after the new is written.
    meanwhile = sum(sorted(training, reverse=True)[:jobs]) * 6
    return round(left) + meanwhile


def disk_free(places: Places) -> int:
    """Free bytes on the disk of the working folder."""
    work = places.work.absolute()
    return shutil.disk_usage(next(path for path in (work, *work.parents) if path.exists())).free


def duration(seconds: float) -> str:
    """12 -> '12 s', 600 -> '10 min', 5400 -> '1.5 h'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_plan(plan: Plan, places: Places, found: Survey, jobs: int = 1) -> None:
    """Print runs by kind and model: their number, those done, durations; then disk space and notes."""
    times = times_of(places)
    missing = {step.id for step in found.missing}
    table = Table("what", "model", title=escape(f"{plan.grid.path}: {counted(len(plan.steps), 'run')}"))
    for column in ("runs", "done", "each", "left"):
        table.add_column(column, justify="right")
    kinds: dict[tuple[str, str], list[Step]] = {}
    for step in sorted(plan.steps, key=lambda step: not step.makes):
        kinds.setdefault((step.kind, step.model), []).append(step)
    for (kind, model), steps in kinds.items():
        to_do = [step for step in steps if step.id in missing]
        known = [times[step.like] for step in steps if step.like in times]
        each = duration(sum(known) / len(known)) if known else "unknown"
        done = len(steps) - len(to_do)
        table.add_row(kind, model, str(len(steps)), str(done), each, _left(times, to_do))
    table.add_section()
    at_once = "" if jobs == 1 else f", {jobs} at once"
    left = _left(times, found.missing, jobs)
    table.add_row(f"all{at_once}", "", str(len(plan.steps)), str(len(found.done)), "", left)
    screen = result_console()
    screen.print(table)
    blind = any(step.model in plan.missing for step in found.missing)
    needed = (
        "an unknown size (weights are missing)"
        if blind
        else f"about {in_bytes(disk_needed(plan, found.missing, jobs))}"
    )
    screen.print(f"disk: {needed} needed in {short(places.work)}/, {in_bytes(disk_free(places))} free", markup=False)
    for note in [*plan.grid.notes, *found.notes, *plan.missing.values()]:
        screen.print(f"note: {note}", markup=False, highlight=False)


def _left(times: dict[str, float], steps: list[Step], jobs: int = 1) -> str:
    """The time left, as far as durations are known."""
    known = [times[step.like] for step in steps if step.like in times]
    unknown = len(steps) - len(known)
    if not steps:
        return "-"
    if not known:
        return "unknown"
    return duration(sum(known) / jobs) + (f" + {unknown} unknown" if unknown else "")


def print_status(plan: Plan, places: Places, found: Survey) -> None:
    """Print the steps that run now, and those that failed."""
    screen = result_console()
    for step in found.missing:
        if is_running(step, places):
            screen.print(f"running  {step.id}  (log: {short(places.log(step.id))})", markup=False, highlight=False)
        elif (last := failure(step, places)) is not None:
            screen.print(f"failed   {step.id}: {last['why']}  (log: {last['log']})", markup=False, highlight=False)
    screen.print(
        f"{len(found.done)} of {counted(len(plan.steps), 'run')} done, results: {short(places.pack)}", markup=False
    )


def is_running(step: Step, places: Places) -> bool:
    """Whether a process holds the step's lock."""
    if not places.lock(step.id).is_file():
        return False
    lock = try_lock(places.lock(step.id), f"look at {places.lock(step.id)}")
    if lock is not None:
        lock.close()
    return lock is None
