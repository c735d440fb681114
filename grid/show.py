"""A plan and its state as tables on the terminal."""

from __future__ import annotations

from rich.table import Table

from console.results import result_console
from console.words import counted
from grid.estimate import Times, disk_free, disk_needed, duration, size
from grid.identity import Sources
from grid.places import Places, short
from grid.steps import PRUNE, Plan, Step
from grid.survey import Survey, failure
from storage.lock import try_lock


def print_plan(plan: Plan, places: Places, found: Survey, sources: Sources, jobs: int) -> None:
    """Runs by kind and model: how many, how many done, how long; then the disk, and what else is to be said."""
    screen = result_console()
    times = Times(places.results)
    missing = {step.id for step in found.missing}
    table = Table(title=f"{plan.grid.path}: {counted(len(plan.steps), 'run')}")
    table.add_column("what")
    table.add_column("model")
    for column in ("runs", "done", "each", "left"):
        table.add_column(column, justify="right")
    kinds: dict[tuple[str, str], list[Step]] = {}
    for step in sorted(plan.steps, key=lambda step: step.kind != PRUNE):
        kinds.setdefault((step.kind, step.model), []).append(step)
    for (kind, model), steps in kinds.items():
        to_do = [step for step in steps if step.id in missing]
        known = [seconds for seconds in map(times.of, steps) if seconds is not None]
        each = duration(sum(known) / len(known)) if known else "unknown"
        seconds, unknown = times.together(to_do)
        done = len(steps) - len(to_do)
        table.add_row(kind, model, str(len(steps)), str(done), each, in_words(seconds, unknown, len(to_do)))
    seconds, unknown = times.together(found.missing)
    table.add_section()
    left = in_words(seconds / jobs, unknown, len(found.missing))
    beside = "" if jobs == 1 else f", {jobs} at once"
    table.add_row(f"all{beside}", "", str(len(plan.steps)), str(len(found.done)), "", left)
    screen.print(table)
    needed = disk_needed(found.missing, sources, jobs, plan.grid.keep_weights)
    blind = any(step.model in sources.missing for step in found.missing)
    words = "an unknown size (weights are missing)" if blind else f"about {size(needed)}"
    screen.print(f"disk: {words} needed in {short(places.work)}/, {size(disk_free(places))} free")
    for note in [*plan.grid.notes, *found.notes, *sources.missing.values()]:
        screen.print(f"note: {note}", markup=False, highlight=False)


def in_words(seconds: float, unknown: int, steps: int) -> str:
    """The time that is left, as far as it is known."""
    if not steps:
        return "-"
    if unknown == steps:
        return "unknown"
    return duration(seconds) + (f" + {unknown} unknown" if unknown else "")


def print_status(plan: Plan, places: Places, found: Survey) -> None:
    """What is being run now, and what failed."""
    screen = result_console()
    for step in found.missing:
        if is_running(step, places):
            screen.print(f"running  {step.id}  (log: {short(places.log(step.id))})", markup=False, highlight=False)
        elif (last := failure(step, places)) is not None:
            screen.print(f"failed   {step.id}: {last['why']}  (log: {last['log']})", markup=False, highlight=False)
    screen.print(f"{len(found.done)} of {counted(len(plan.steps), 'run')} done, results: {short(places.folder)}/")


def is_running(step: Step, places: Places) -> bool:
    """Whether somebody holds the step's lock."""
    if not places.lock(step.id).is_file():
        return False
    lock = try_lock(places.lock(step.id), f"look at {places.lock(step.id)}")
    if lock is None:
        return True
    lock.close()
    return False
