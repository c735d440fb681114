"""A map of all layers: a row a pruner, a column a layer in the model's order, darker where more weights are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from console.words import counted
from report.layers import LayerShares
from report.palette import LIGHT
from report.pictures import Draw
from sparsity.percents import percent

ABOVE, ROW, BELOW = 0.45, 0.24, 0.3
WIDTH = 10.0
"""In inches."""


def height(shares: LayerShares) -> float:
    """Of the map in inches."""
    return ABOVE + BELOW + ROW * len(shares.pruned)


def margins(shares: LayerShares) -> dict[str, float]:
    """Where the map begins and ends within it, as shares."""
    tall = height(shares)
    longest = max(map(len, shares.pruned))
    return {"left": 0.011 + 0.0083 * longest, "right": 0.99, "bottom": BELOW / tall, "top": 1 - ABOVE / tall}


def layer_map(shares: LayerShares, pruners: Sequence[str], sparsity: float) -> Draw:
    """The map of one sparsity; a cross where nothing is kept of a layer."""
    rows = [name for name in pruners if name in shares.pruned]
    most = max((1 - share for layers in shares.pruned.values() for share in layers.values()), default=1) or 1

    def draw(axis: Any) -> None:
        from matplotlib.patches import Rectangle

        x, gap, middles = 0, 1, []
        for modality, names in shares.modalities.items():
            middles.append((x + len(names) / 2, modality, len(names)))
            for row, pruner in enumerate(rows):
                for column, name in enumerate(names, start=x):
                    kept = 1 - shares.pruned[pruner][name]
                    shade = {"facecolor": LIGHT["blue"], "alpha": 0.03 + 0.97 * kept / most}
                    box = Rectangle((column, row + 0.06), 0.94, 0.88, linewidth=0, clip_on=False, **shade)
                    axis.add_patch(box)
                    if kept == 0:
                        axis.plot(column + 0.47, row + 0.5, "x", color=LIGHT["orange"], markersize=4, clip_on=False)
            x += len(names) + gap
        axis.set_xlim(0, x - gap)
        axis.set_ylim(len(rows), 0)
        axis.set_yticks([row + 0.5 for row in range(len(rows))], rows)
        axis.set_xticks(
            [middle for middle, _, _ in middles], [f"{name}, {counted(count, 'layer')}" for _, name, count in middles]
        )
        axis.tick_params(length=0)
        axis.tick_params(axis="y", labelcolor=LIGHT["ink"])
        axis.spines[:].set_visible(False)
        axis.grid(False)
        axis.set_title(f"{percent(sparsity / 100)} % pruned: weights kept in every layer, in the model's order")
        _scale(axis, most)

    return draw


def _scale(axis: Any, most: float) -> None:
    """What the shades mean, at the upper right."""
    from matplotlib.patches import Rectangle

    transform = axis.transAxes
    inch = axis.get_position().height * axis.figure.get_size_inches()[1]
    bottom, tall = 1 + 0.16 / inch, 0.11 / inch
    for step in range(5):
        axis.add_patch(
            Rectangle(
                (0.86 + 0.018 * step, bottom), 0.017, tall, transform=transform, facecolor=LIGHT["blue"],
                alpha=0.03 + 0.97 * step / 4, linewidth=0, clip_on=False,
            )
        )  # fmt: skip
    words = {"va": "center", "fontsize": 9, "color": LIGHT["soft"], "transform": transform}
    axis.text(0.853, bottom + tall / 2, "0", ha="right", **words)
    axis.text(0.957, bottom + tall / 2, f"{100 * most:.0f} %", ha="left", **words)
