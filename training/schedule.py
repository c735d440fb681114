"""Learning rate as a function of the optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from console.errors import InputError, nearest

DECAYS = ("linear", "cosine", "late", "none")


@dataclass(frozen=True)
class Schedule:
    """warmup: share of all steps in which the rate rises from 0. decay: how it falls to 0 afterwards.

    linear and cosine fall at once; late stays at the peak until the last 40 % of the steps, then falls linearly. Of w
    steps of warming up, step t (from 0) has (t + 1) / (w + 1) of the peak rate; the published runs have t / w, and so
    learn nothing in their first step.
    """

    warmup: float = 0.1
    decay: str = "linear"

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise InputError(f"unknown decay '{self.decay}'{nearest(self.decay, DECAYS)}: one of {', '.join(DECAYS)}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is a share of all steps, from 0 to below 1, not {self.warmup}")

    def factor(self, step: int, steps: int) -> float:
        """What the peak rate is multiplied with at `step` (from 0) of `steps`."""
        rising = round(self.warmup * steps)
        if step < rising:
            return (step + 1) / (rising + 1)
        done = (step - rising) / max(1, steps - rising)
        if self.decay == "linear":
            return 1 - done
        if self.decay == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        if self.decay == "late":
            return min(1.0, (1 - done) / 0.4)
        return 1.0
