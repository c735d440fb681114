"""Learning rate as a function of the optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from console.errors import InputError, nearest

DECAYS = ("linear", "cosine", "late", "none")


@dataclass(frozen=True)
class Schedule:
    """How the rate rises to its peak and falls to 0.

    During w warm-up steps, step t (from 0) has (t + 1) / (w + 1) of the peak rate. Published runs use t / w instead:
    their first step has rate 0 and changes nothing.
    """

    warmup: float = 0.1  # share of all steps in which the rate rises
    decay: str = "linear"  # linear or cosine after the warm-up; late: linear over the last 40 % of the steps
    every: str = "step"  # when the rate changes: at each step, or at the start of each epoch
    span: list[float] = field(default_factory=lambda: [0.0, 1.0])  # part of the schedule that this run covers

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise InputError(f"unknown decay '{self.decay}'{nearest(self.decay, DECAYS)}: one of {', '.join(DECAYS)}")
        if self.every not in ("step", "epoch"):
            raise InputError(f"the schedule changes the rate every step or epoch, not every '{self.every}'")
        if len(self.span) != 2 or not 0 <= self.span[0] < self.span[1] <= 1:
            raise InputError(f"span is the part of a schedule that a run has, such as [0.5, 1.0], not {self.span}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is a share of all steps, from 0 to below 1, not {self.warmup}")

    def factor(self, step: int, steps: int, epoch: int = 0) -> float:
        """What the peak rate is multiplied with at `step` (from 0) of `steps`; epoch: steps of an epoch (0: none)."""
        if self.every == "epoch" and epoch:
            step -= step % epoch
        if self.span != [0.0, 1.0]:
            begin, end = self.span
            step, steps = step + begin * steps / (end - begin), steps / (end - begin)
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
