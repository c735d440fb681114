"""Pairwise comparison of masks: how many weights they share, overall, by modality and by layer.

If one mask keeps the share p of a layer's n weights and the other q, two independent random masks have p q n of them in
common on average, and (p + q - p q) n in their union: an IoU of about p q / (p + q - p q).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inspection.reading import MaskFile, check_same_layers
from sparsity.mask import Mask
from sparsity.picture import save_picture

Pair = tuple[int, int]


@dataclass(frozen=True)
class Overlap:
    """Counts of two masks on some weights; overlaps of several layers can be added.

    size: all weights. a, b: kept by the one and by the other mask. both: kept by both. by_chance: expected value of
    `both` for random masks with the same density in every layer.
    """

    size: int = 0
    a: int = 0
    b: int = 0
    both: int = 0
    by_chance: float = 0.0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(*(getattr(self, field) + getattr(other, field) for field in self.__dataclass_fields__))

    @property
    def iou(self) -> float:
        """Weights kept by both among those kept by either; 1 if neither keeps any."""
        return _share(self.both, self.a + self.b - self.both)

    @property
    def chance(self) -> float:
        """The IoU of random masks with the same density in every layer."""
        return _share(self.by_chance, self.a + self.b - self.by_chance)

    @property
    def overlap(self) -> float:
        """Share of the sparser mask's weights that the other also keeps: 1 if it is a subset."""
        return _share(self.both, min(self.a, self.b))

    @property
    def agreement(self) -> float:
        """Share of all weights that both keep or both prune."""
        return _share(self.size - self.a - self.b + 2 * self.both, self.size)


@dataclass(frozen=True)
class Spread:
    """A number over all pairs of masks: mean, standard deviation, least and greatest."""

    mean: float
    sd: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.fmean(values), statistics.pstdev(values), min(values), max(values))


@dataclass(frozen=True)
class Comparison:
    """pairs: (i, j), i < j -> layer -> overlap of masks i and j. modalities: modality -> layers."""

    files: list[MaskFile]
    pairs: dict[Pair, dict[str, Overlap]]
    modalities: dict[str, list[str]]

    @property
    def layers(self) -> list[str]:
        """All layers, in the order of the first mask."""
        return list(self.files[0].mask)

    def parts(self) -> dict[str, list[str]]:
        """Name of a part -> its layers: all layers, and if there are several modalities, each of them."""
        return {"all layers": self.layers} | (self.modalities if len(self.modalities) > 1 else {})

    def overlap(self, pair: Pair, names: Sequence[str] | None = None) -> Overlap:
        """The overlap of a pair over the given layers, or all."""
        layers = self.pairs[pair]
        return sum((layers[name] for name in (self.layers if names is None else names)), Overlap())

    def iou(self, names: Sequence[str] | None = None) -> Spread:
        """IoU over all pairs, in the given layers or all."""
        return Spread.of([self.overlap(pair, names).iou for pair in self.pairs])

    def chance(self, names: Sequence[str] | None = None) -> float:
        """IoU of random masks of the same densities, mean over the pairs."""
        return statistics.fmean(self.overlap(pair, names).chance for pair in self.pairs)

    def matrix(self, names: Sequence[str] | None = None) -> list[list[float]]:
        """IoU of all pairs, [k, k]: measured above the diagonal, by chance below it; 1 on the diagonal."""
        square = [[1.0] * len(self.files) for _ in self.files]
        for i, j in self.pairs:
            found = self.overlap((i, j), names)
            square[i][j], square[j][i] = found.iou, found.chance
        return square


def compare(files: Sequence[MaskFile]) -> Comparison:
    """Compare every mask with every other; InputError naming the first layer that does not match."""
    check_same_layers(files)
    kept = [{name: file.mask.kept(name) for name in file.mask} for file in files]
    pairs = {
        (i, j): overlap(files[i].mask, files[j].mask, kept[i], kept[j])
        for i, j in itertools.combinations(range(len(files)), 2)
    }
    named = next((file.mask for file in files if file.mask.modalities), files[0].mask)
    modalities: dict[str, list[str]] = {}
    for name in files[0].mask:
        modalities.setdefault(named.modalities.get(name, "all"), []).append(name)
    return Comparison(list(files), pairs, modalities)


def overlap(a: Mask, b: Mask, kept_a: Mapping[str, int], kept_b: Mapping[str, int]) -> dict[str, Overlap]:
    """Layer -> overlap of two masks of the same layers. kept_a, kept_b: number of weights that each keeps by layer."""
    found = {}
    for name in a:
        size, p, q = a.size(name), kept_a[name], kept_b[name]
        both = int(np.bitwise_count(a.bits(name) & b.bits(name)).sum())
        found[name] = Overlap(size, p, q, both, p * q / max(1, size))
    return found


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def draw_heat_map(comparison: Comparison, path: Path) -> None:
    """Draw a map of all layers and one per modality, with the IoU in percent in every cell (PNG)."""
    from matplotlib.figure import Figure

    labels = [file.label for file in comparison.files]
    maps = comparison.parts()
    side = 1.2 + 0.55 * len(labels)
    longest = 0.075 * max(map(len, labels))
    figure = Figure(figsize=(side * len(maps) + longest, side + longest + 0.3), layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)
    for axis, (title, names) in zip(axes[0], maps.items(), strict=True):
        square = comparison.matrix(names)
        square = [[square[min(i, j)][max(i, j)] for j in range(len(labels))] for i in range(len(labels))]
        image = axis.imshow(square, vmin=0, vmax=1, cmap="Blues")
        for i, row in enumerate(square):
            for j, value in enumerate(row):
                colour = "white" if value > 0.5 else "black"
                axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=9)
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=9)
        axis.set_yticks(range(len(labels)), labels if axis is axes[0, 0] else [], fontsize=9)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=list(axes[0]), shrink=0.8, pad=0.01)
    bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
    figure.suptitle("IoU of the weights kept, in percent", fontsize=12)
    save_picture(figure, path)
