"""The pruned share of every layer, by pruner; as a map: a row per pruner, a column per layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from console.words import counted
from sparsity.percents import percent
from studies.looks import LIGHT
from studies.pictures import Draw
from studies.reading import Results

ABOVE, ROW, BELOW = 0.45, 0.24, 0.3
WIDTH = 10.0
"""Width of a map and heights of its parts, in inches."""


@dataclass(frozen=True)
class LayerShares:
    """Pruner -> layer -> share pruned, mean over seeds; modalities: modality -> its layers, in the model's order."""

    modalities: dict[str, list[str]]
    sizes: dict[str, int]
    pruned: dict[str, dict[str, float]]

    def of_modality(self, pruner: str, modality: str) -> float:
        """Share of a modality's weights pruned."""
        names = self.modalities[modality]
        gone = sum(self.pruned[pruner][name] * self.sizes[name] for name in names)
        return gone / sum(self.sizes[name] for name in names)


def layer_shares(results: Results, model: str, pruners: Sequence[str], sparsity: float) -> LayerShares | None:
    """The shares of all pruners of a model at a sparsity in percent; None if no pruning recorded its layers."""
    label = percent(sparsity / 100)
    found = {
        pruner: [counts for run in results.prunings_of(model, pruner) if (counts := run.result.layers.get(label))]
        for pruner in pruners
    }
    found = {pruner: seeds for pruner, seeds in found.items() if seeds}
    if not found:
        return None
    first = next(iter(found.values()))[0]
    modalities = {modality: list(layers) for modality, layers in first.items()}
    sizes = {name: size for layers in first.values() for name, (_, size) in layers.items()}
    pruned: dict[str, dict[str, float]] = {}
    for pruner, seeds in found.items():
        shares: dict[str, list[float]] = defaultdict(list)
        for counts in seeds:
            for layers in counts.values():
                for name, (kept, size) in layers.items():
                    shares[name].append(1 - kept / size)
        if shares.keys() == sizes.keys():
            pruned[pruner] = {name: sum(values) / len(values) for name, values in shares.items()}
    return LayerShares(modalities, sizes, pruned)


def modality_shares(
    results: Results, model: str, pruners: Sequence[str], sparsity: float
) -> dict[str, dict[str, float]]:
    """Pruner -> modality -> share of its weights pruned.

    Rows that prune while training have no prunings: their shares are counted in task models, mean over tasks and seeds.
    """
    layers = layer_shares(results, model, pruners, sparsity)
    found: dict[str, dict[str, float]] = {}
    for pruner in pruners:
        if layers is not None and pruner in layers.pruned:
            found[pruner] = {modality: layers.of_modality(pruner, modality) for modality in layers.modalities}
        elif kept := results.kept(model, pruner, sparsity):
            found[pruner] = {modality: 1 - share for modality, share in kept.items()}
    return found


def height(shares: LayerShares) -> float:
    """Height of the map, in inches."""
    return ABOVE + BELOW + ROW * len(shares.pruned)


def margins(shares: LayerShares) -> dict[str, float]:
    """Position of the axes within the map, as shares."""
    tall = height(shares)
    longest = max(map(len, shares.pruned))
    return {"left": 0.011 + 0.0083 * longest, "right": 0.99, "bottom": BELOW / tall, "top": 1 - ABOVE / tall}


def layer_map(shares: LayerShares, pruners: Sequence[str], sparsity: float) -> Draw:
    """The map of one sparsity; a cross marks a layer without any weight left."""
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
    """The legend of shades, at the upper right."""
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
