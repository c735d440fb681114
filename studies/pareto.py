"""Score against cost, with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.costs import front
from studies.curves import LABEL
from studies.looks import LIGHT, Look
from studies.pictures import Draw

CROWD = 15
"""With more points than this, only those on the front are labelled."""

SIDES = (
    ("left", "center", 1, 0), ("center", "bottom", 0, 1), ("center", "top", 0, -1), ("right", "center", -1, 0),
    ("left", "bottom", 1, 1), ("left", "top", 1, -1), ("right", "bottom", -1, 1), ("right", "top", -1, -1),
)  # fmt: skip
"""Possible positions of a label: its alignment, and the side of its point."""


def pareto_panel(points: Mapping[str, tuple[float, float]], looks: Mapping[str, Look], title: str, words: str) -> Draw:
    """The panel. points: name -> (cost, score). title: names the score. words: label of the axis of costs."""

    def draw(axis: Any) -> None:
        costs = [x for x, _ in points.values()]
        values = [y for _, y in points.values()]
        logarithmic = min(costs) > 0 and max(costs) > 15 * min(costs)
        if logarithmic:
            axis.set_xscale("log")
            axis.set_xlim(min(costs) / 1.6, max(costs) * 1.6)
        else:
            room = max(max(costs) - min(costs), 0.1 * max(costs))
            axis.set_xlim(min(costs) - 0.1 * room, max(costs) + 0.1 * room)
        room = max(max(values) - min(values), 1e-6)
        axis.set_ylim(min(values) - 0.12 * room, max(values) + 0.12 * room)
        best = front(dict(points))
        x, y = zip(*(points[name] for name in best), strict=True)
        right = axis.get_xlim()[1]
        axis.plot(
            [*x, right], [*y, y[-1]], drawstyle="steps-post", color=LIGHT["soft"], linewidth=1, clip_on=False, zorder=1
        )
        for name, (at, value) in points.items():
            look = looks[name]
            axis.plot(
                [at], [value], marker=look.marker, color=look.colour, markersize=7 if name in best else 5.5,
                markerfacecolor=look.colour if name in best else LIGHT["page"], markeredgewidth=1.4, clip_on=False,
                linestyle="none", zorder=3,
            )  # fmt: skip
        line = [(a, b) for i, b in enumerate(y) for a in _between(x[i], [*x, right][i + 1], logarithmic)]
        line += [(x[i], b) for i in range(1, len(x)) for b in _between(y[i - 1], y[i], False)]
        named = {name: points[name] for name in (best if len(points) > CROWD else points)}
        place_labels(axis, named, {name: looks[name].colour for name in named}, line)
        axis.set_xlabel(words)
        axis.set_title(title)
        axis.xaxis.grid(False)
        if logarithmic:
            from matplotlib.ticker import FuncFormatter, NullFormatter

            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())

    return draw


def place_labels(
    axis: Any,
    points: Mapping[str, tuple[float, float]],
    colours: Mapping[str, str],
    line: Sequence[tuple[float, float]] = (),
) -> None:
    """Label each point, if possible at a position that covers no other label, no point and no part of the line."""
    axis.figure.canvas.draw()
    scale = 72 / axis.figure.dpi
    spots = {name: tuple(value * scale for value in axis.transData.transform(at)) for name, at in points.items()}
    taken = [(x - 4, y - 4, x + 4, y + 4) for x, y in spots.values()]
    taken += [(x - 1, y - 1, x + 1, y + 1) for x, y in (axis.transData.transform(at) * scale for at in line)]
    corner = [tuple(value * scale for value in axis.transAxes.transform(at)) for at in ((0, 0), (1.2, 1.04))]
    for name in sorted(spots, key=lambda name: spots[name]):
        x, y = spots[name]
        width, height = 0.58 * LABEL * len(name) + 2, LABEL + 1
        found = None
        for out in (7, 11, 17, 25):
            for ha, va, right, up in SIDES:
                dx, dy = right * (out - 2 * bool(up)), up * (out - 1 - 2 * bool(right))
                left = x + dx - {"left": 0, "right": width, "center": width / 2}[ha]
                low = y + dy - {"bottom": 0, "top": height, "center": height / 2}[va]
                box = (left, low, left + width, low + height)
                inside = left > corner[0][0] and box[2] < corner[1][0] and low > corner[0][1] and box[3] < corner[1][1]
                if inside and not any(_touch(box, other) for other in taken):
                    found = (ha, va, dx, dy, box)
                    break
            if found:
                break
        ha, va, dx, dy, box = found or ("left", "center", 7, 0, (x + 7, y, x + 7 + width, y + height))
        taken.append(box)
        axis.annotate(
            name, points[name], (dx, dy), textcoords="offset points", ha=ha, va=va, color=colours[name], fontsize=LABEL,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colours[name], "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
            if max(abs(dx), abs(dy)) > 11
            else None,
        )  # fmt: skip


def _between(low: float, high: float, logarithmic: bool) -> list[float]:
    """Points along a line, so close that no label fits between two of them."""
    shares = [i / 60 for i in range(61)]
    if logarithmic:
        return [low * (high / low) ** share for share in shares]
    return [low + (high - low) * share for share in shares]


def _touch(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
