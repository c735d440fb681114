"""How far a plan is: what is done, what is missing, and what else lies in its results folder."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from console.words import agreed, counted
from grid.places import Places
from grid.results import outcome, read_result
from grid.steps import PRUNE, Plan, Step
from grid.version import tell, version


@dataclass
class Survey:
    """done: ids. missing: steps to do, in the plan's order. notes: sentences on what is there and not used."""

    done: set[str] = field(default_factory=set)
    missing: list[Step] = field(default_factory=list)
    half: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def survey(plan: Plan, places: Places) -> Survey:
    """Look at every step: its result, or else finished work that only has to be collected."""
    found = Survey()
    users = plan.users()
    for step in plan.steps:
        if step.kind != PRUNE and is_done(step, places):
            found.done.add(step.id)
        if places.result(step.id).is_file() and read_result(places.result(step.id)) is None:
            found.half.append(step.id)
    for step in plan.steps:
        if step.kind == PRUNE and prune_done(step, places, all(user.id in found.done for user in users[step.id])):
            found.done.add(step.id)
    found.missing = [step for step in plan.steps if step.id not in found.done]
    found.notes = _notes(plan, places, found)
    return found


def is_done(step: Step, places: Places) -> bool:
    """Whether a step has a result, or finished work to make one of."""
    return has_result(step, places) or outcome(step, places) is not None


def has_result(step: Step, places: Places) -> bool:
    """Whether a step's result is there, whole, and of today's version."""
    result = read_result(places.result(step.id))
    if result is None or result["id"] != step.id or result["version"] != version():
        return False
    return step.kind != PRUNE or set(step.sparsities) <= set(result.get("sparsities", ()))


def prune_done(step: Step, places: Places, users_done: bool) -> bool:
    """Masks count once nobody needs them any more, even if they were removed; else they must be there."""
    return outcome(step, places) is not None or (users_done and has_result(step, places))


def failure(step: Step, places: Places) -> dict[str, Any] | None:
    """How a step failed last: {"time", "why", "log"}; None where it did not."""
    try:
        value = json.loads(places.failed(step.id).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _notes(plan: Plan, places: Places, found: Survey) -> list[str]:
    """What lies in the grid's folder and is none of its results."""
    known = {step.id for step in plan.steps}
    versions: Counter[str] = Counter()
    strangers = 0
    for path in sorted(places.folder.glob("*/result.json")):
        result = read_result(path)
        if result is None:
            continue
        if result["version"] != version():
            versions[tell(result["version"])] += 1
        elif result["id"] not in known:
            strangers += 1
    notes = [
        f"{counted(count, 'result')} of another version ({which}) {agreed(count, 'is')} not used: {places.folder}"
        for which, count in versions.items()
    ]
    if strangers:
        notes.append(
            f"{counted(strangers, 'result')} of no run of this grid (an earlier form of it?) "
            f"{agreed(strangers, 'is')} left alone"
        )
    if found.half:
        notes.append(f"{counted(len(found.half), 'half-written result', 'is')} made again: {', '.join(found.half[:3])}")
    return notes
