"""The cost of pruning: seconds and memory of prune.py, for all sparsities of a grid together."""

from __future__ import annotations

from collections.abc import Sequence

from console.errors import InputError, nearest
from studies.reading import Results
from studies.run import Run
from studies.scores import OverSeeds

COSTS = {
    "seconds": ("pruning time", "s"),
    "cpu_seconds": ("CPU time of the whole run", "s"),
    "peak_memory_gb": ("peak memory", "GB"),
}
"""Axis -> words, unit."""


def check_cost(name: str) -> str:
    """InputError with the nearest name for a cost that is not measured."""
    if name not in COSTS:
        raise InputError(f"--cost: unknown axis '{name}'{nearest(name, COSTS)}: choose one of {', '.join(COSTS)}")
    return name


def costs_of(results: Results, model: str, pruners: Sequence[str], cost: str) -> dict[str, OverSeeds]:
    """Pruner -> its cost. Times of interrupted runs are left out, since they lack the part before the interruption."""
    found: dict[str, OverSeeds] = {}
    for pruner in pruners:
        runs = results.prunings_of(model, pruner)
        values = [value for run in runs if (value := cost_of(run, cost)) is not None]
        if values:
            found[pruner] = OverSeeds(tuple(values))
    return found


def cost_of(run: Run, cost: str) -> float | None:
    """The cost of one pruning, summed over its runs of prune.py (one, and one more whenever sparsities were added)."""
    result = run.result
    if cost == "peak_memory_gb":
        return result.peak_memory_gb
    if result.attempts > 1 and not result.ended_well:
        return None
    if cost == "cpu_seconds":
        return result.cpu_seconds
    # Masks of one run of prune.py all record its seconds: count them once.
    return sum(
        seconds for seconds, _ in {(row["seconds"], row["masks_in_this_run"]) for row in result.metrics.values()}
    )


def front(points: dict[str, tuple[float, float]]) -> list[str]:
    """The Pareto front of name -> (cost, score): names that no other one beats in both, cheapest first."""
    best: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not best or points[name][1] > points[best[-1]][1]:
            best.append(name)
    return best
