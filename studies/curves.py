"""Curves of a metric against sparsity, labelled at their ends, with the dense model as a horizontal line."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparsity.percents import percent
from studies.looks import LIGHT, Look
from studies.metrics import metric_words, task_words
from studies.pictures import HEIGHT, MARGINS, Draw
from studies.scores import Scores

LABEL = 9
"""Size of labels, in points."""

APART = 1.22 * LABEL
"""Distance of labels, in points."""

MANY = 5
"""With more pruners than this, curves overlap, and a second panel shows their differences from the mean."""


def curve_panel(
    scores: Scores, model: str, task: str, metric: str, looks: Mapping[str, Look], relative: bool = False
) -> Draw:
    """The panel of a metric. relative: subtract the mean of all pruners at each sparsity, to show their differences."""
    sparsities = scores.sparsities(model)
    places = positions(sparsities)
    dense = None if relative else scores.dense(model, task, metric)
    level = {s: level_of(scores, model, task, metric, s) if relative else 0.0 for s in sparsities}

    def draw(axis: Any) -> None:
        ends: list[tuple[float, float, str, str]] = []
        names = [name for name in looks if any(scores.get(model, task, metric, name, s) for s in sparsities)]
        step = 0.022 * (places[-1] - places[0] or 1)
        step = min(step, 0.09 * (places[-1] - places[0] or 1) / max(1, len(names)))
        for number, name in enumerate(names):
            look, aside = looks[name], (number - (len(names) - 1) / 2) * step
            found = [(x, s, scores.get(model, task, metric, name, s)) for x, s in zip(places, sparsities, strict=True)]
            points = [(x + aside, score.mean - level[s], score.sd or 0.0) for x, s, score in found if score]
            x, y, sd = zip(*points, strict=True)
            drawn = axis.errorbar(
                x, y, yerr=sd if any(sd) else None, color=look.colour, marker=look.marker, linestyle=look.dashes,
                elinewidth=1, capsize=0, markeredgecolor=LIGHT["page"], markeredgewidth=0.6, clip_on=False, zorder=3,
            )  # fmt: skip
            for stroke in drawn[2]:
                stroke.set_alpha(0.5)
            ends.append((x[-1], y[-1], name, look.colour))
        if dense is not None:
            axis.axhline(dense.mean, color=LIGHT["ink"], linewidth=1, linestyle=(0, (2, 2)), clip_on=False, zorder=2)
            ends.append((places[-1], dense.mean, f"dense {dense.mean:.1f}", LIGHT["ink"]))
        if relative:
            axis.axhline(0, color=LIGHT["soft"], linewidth=1, clip_on=False, zorder=2)
        span = places[-1] - places[0] or 1
        axis.set_xlim(places[0] - 0.05 * span, places[-1] + 0.05 * span)
        axis.margins(y=0.06)
        axis.set_xticks(places, [f"{percent(s / 100)} %" for s in sparsities])
        what = f"{task_words(task)}: {metric_words(task, metric)}"
        axis.set_title(f"{what}, less the pruners' mean" if relative else what)
        axis.set_xlabel("weights pruned")
        label_ends(axis, ends)

    return draw


def height_for(labels: int) -> float:
    """Height of a panel in inches, so that this number of labels finds room beside its axes."""
    return max(HEIGHT, labels * APART / (72 * (MARGINS["top"] - MARGINS["bottom"])))


def level_of(scores: Scores, model: str, task: str, metric: str, sparsity: float) -> float:
    """Mean over all pruners at a sparsity; 0 if there is none."""
    found = scores.column((model, task, metric, sparsity)).values()
    return sum(score.mean for score in found) / len(found) if found else 0.0


def positions(sparsities: Sequence[float]) -> list[float]:
    """Positions of sparsities on the axis: to scale, or equally spaced if their labels would overlap."""
    span = sparsities[-1] - sparsities[0]
    gaps = [b - a for a, b in itertools.pairwise(sparsities)]
    if gaps and min(gaps) < 0.12 * span:
        return [float(i) for i in range(len(sparsities))]
    return list(sparsities)


def label_ends(axis: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names next to the ends of curves, without overlap, each with a thin line to its own end.

    ends: (x, y, name, colour).
    """
    if not ends:
        return
    axis.set_ylim(axis.get_ylim())
    low, high = axis.get_ylim()
    box = axis.get_position()
    height = box.height * axis.figure.get_size_inches()[1] * 72
    gap = APART * (high - low) / height
    where = spread([y for _, y, _, _ in ends], gap, low, high)
    left, right = axis.get_xlim()
    start = right + 0.055 * (right - left)
    for (x, y, name, colour), label in zip(ends, where, strict=True):
        axis.plot(
            [right if name.startswith("dense") else x, right, start - 0.008 * (right - left)], [y, y, label],
            color=colour, linewidth=0.6, alpha=0.7, clip_on=False, zorder=1, scalex=False, scaley=False,
        )  # fmt: skip
        axis.text(start, label, name, color=colour, fontsize=LABEL, va="center", ha="left", clip_on=False)


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions of labels, nearest to their values by least squares.

    They are in the same order, at least `gap` apart, and within [low, high] if they fit.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(values, kind="stable")
    # Labels that are `gap` apart become equal when i gaps are subtracted from the i-th, so that only order remains.
    shifts = gap * np.arange(len(values))
    fitted = isotonic_regression(np.asarray(values, float)[order] - shifts).x
    found = np.empty(len(values))
    found[order] = np.clip(fitted, low, max(high - shifts[-1], low)) + shifts
    return found.tolist()
