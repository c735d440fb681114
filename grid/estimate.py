"""How long and how large: from runs of the same kind that are finished, in any grid."""

from __future__ import annotations

import shutil
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from grid.identity import Sources
from grid.places import Places
from grid.results import read_result
from grid.schema import ZERO_SHOT
from grid.steps import PRUNE, Step

UPDATING = ("chita", "chita++", "sparsegpt")
"""Methods whose masks carry the weights that are kept."""


class Times:
    """Seconds of finished runs by kind: same model, task (or method) and configuration; seeds and masks may differ."""

    def __init__(self, results: Path):
        whole: dict[str, list[float]] = defaultdict(list)
        for path in results.glob("*/*/result.json"):
            result = read_result(path)
            if result is not None and result.get("seconds") is not None and result.get("uninterrupted"):
                whole[result["like"]].append(result["seconds"])
        self._median = {like: statistics.median(seconds) for like, seconds in whole.items()}

    def of(self, step: Step) -> float | None:
        """The median of the same kind; None where none is known."""
        return self._median.get(step.like)

    def together(self, steps: Iterable[Step]) -> tuple[float, int]:
        """Seconds of the steps whose kind is known, one after the other, and how many are of no known kind."""
        each = [self.of(step) for step in steps]
        return sum(seconds for seconds in each if seconds is not None), each.count(None)


def disk_needed(missing: list[Step], sources: Sources, jobs: int, keep_weights: bool) -> int:
    """Bytes that the missing steps leave, and those that `jobs` of them need meanwhile; roughly."""
    weights = [sources.weights.get(step.model, 0) for step in missing]
    left = 0
    for step, size in zip(missing, weights, strict=True):
        if step.kind == PRUNE:
            each = size if step.pruner in UPDATING else size // 32  # one bit a weight of four bytes
            left += each * len(step.sparsities)
        elif keep_weights and step.kind != ZERO_SHOT:
            left += 2 * size  # the best epoch and the last
    training = [size for step, size in zip(missing, weights, strict=True) if step.kind not in (PRUNE, ZERO_SHOT)]
    meanwhile = sum(sorted(training, reverse=True)[:jobs]) * 6  # besides, a snapshot with Adam's moments, twice
    return left + meanwhile


def disk_free(places: Places) -> int:
    """Bytes free where the work goes."""
    folder = places.work.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def duration(seconds: float) -> str:
    """12 -> '12 s', 600 -> '10 min', 5400 -> '1.5 h'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
