"""A number of several seeds, as tables and pictures show it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class OverSeeds:
    """values: one for each seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Over seeds, of a sample (n - 1); None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None
