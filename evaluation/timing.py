"""Time several works in turn within one run, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

WARM_UP = 3


@dataclass(frozen=True)
class Spread:
    """Median, quartiles, and the least value: of times, the one that other work disturbed least."""

    median: float
    low: float
    high: float
    least: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The quartiles of at least one value, interpolated linearly."""
        least, low, median, high = map(float, np.percentile(values, (0, 25, 50, 75)))
        return cls(median, low, high, least)


def in_turn(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warm_up: int = WARM_UP,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Name -> milliseconds of each of `repeats` calls, after `warm_up` calls of each that do not count.

    Every round calls each work once; the order turns round from one round to the next, so that none always comes
    first. On a CUDA device its own clock counts, from the first kernel to the last.
    """
    milliseconds = _on_cuda if device.type == "cuda" else _on_cpu
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warm_up + repeats):
        for name in list(works) if number % 2 else reversed(list(works)):
            taken = milliseconds(works[name])
            if number >= warm_up:
                times[name].append(taken)
        advance()
    return times


def _on_cpu(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def _on_cuda(work: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


@dataclass(frozen=True)
class Speed:
    """How many times as fast as another work: median and quartiles over the rounds, and by the fastest of each."""

    median: float
    low: float
    high: float
    fastest: float

    @classmethod
    def of(cls, dense: Sequence[float], other: Sequence[float]) -> Speed:
        """How many times as fast as dense, from the two times of each round."""
        ratios = Spread.of([a / b for a, b in zip(dense, other, strict=True)])
        return cls(ratios.median, ratios.low, ratios.high, min(dense) / min(other))
