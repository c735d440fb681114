"""Pairwise comparison of masks: how many weights they share, overall, by modality and by layer.

Among the n weights of a layer of which one mask keeps the share p and the other q, two independent random masks share
p q n weights on average, and together keep (p + q - p q) n: an IoU of about p q / (p + q - p q).
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inspection.reading import MaskFile, check_same_layers
from sparsity.mask import Mask
from storage.atomic import atomic_path

Pair = tuple[int, int]


@dataclass(frozen=True)
class Overlap:
    """Two masks on some weights; overlaps of several layers add up, each with its own densities.

    size: weights. a, b: those that either mask keeps. both: kept by both. by_chance: expected in `both` at random.
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
        """Weights kept by both among those kept by either; 1 where neither keeps any."""
        return _share(self.both, self.a + self.b - self.both)

    @property
    def chance(self) -> float:
        """The IoU of random masks that are as dense in every layer."""
        return _share(self.by_chance, self.a + self.b - self.by_chance)

    @property
    def overlap(self) -> float:
        """Share of what the sparser mask keeps that the other keeps, too: 1 where it lies within it."""
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
        """What is shown of the masks -> its layers: all, and where there are several, each modality."""
        return {"all layers": self.layers} | (self.modalities if len(self.modalities) > 1 else {})

    def overlap(self, pair: Pair, names: Iterable[str] | None = None) -> Overlap:
        """The overlap of a pair over the given layers, or all."""
        layers = self.pairs[pair]
        return together(layers.values() if names is None else (layers[name] for name in names))

    def iou(self, names: Iterable[str] | None = None) -> Spread:
        """IoU over all pairs, in the given layers or all."""
        names = self.layers if names is None else list(names)
        return Spread.of([self.overlap(pair, names).iou for pair in self.pairs])

    def chance(self, names: Iterable[str] | None = None) -> float:
        """IoU of random masks of the same densities, mean over the pairs."""
        names = self.layers if names is None else list(names)
        return statistics.fmean(self.overlap(pair, names).chance for pair in self.pairs)

    def matrix(self, names: Iterable[str] | None = None) -> list[list[float]]:
        """IoU of every mask with every other, [k, k]: above the diagonal as it is, below it by chance; 1 in it."""
        names = self.layers if names is None else list(names)
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
    """Layer -> overlap of two masks of the same layers; kept_...: the weights they keep of each layer."""
    found = {}
    for name in a:
        size, p, q = a.size(name), kept_a[name], kept_b[name]
        found[name] = Overlap(size, p, q, ones(a.bits(name) & b.bits(name)), p * q / max(1, size))
    return found


def ones(bits: np.ndarray) -> int:
    """Number of ones in packed bits (uint8), eight bytes at a time."""
    whole = len(bits) // 8 * 8
    words = np.bitwise_count(bits[:whole].view(np.uint64)).sum(dtype=np.int64)
    return int(words + np.bitwise_count(bits[whole:]).sum(dtype=np.int64))


def together(overlaps: Iterable[Overlap]) -> Overlap:
    """The overlap over several layers."""
    return sum(overlaps, Overlap())


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def draw_heat_map(comparison: Comparison, path: Path) -> None:
    """One map overall and one a modality, IoU in percent in every cell (PNG)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = [file.label for file in comparison.files]
    maps = comparison.parts()
    side = 1.2 + 0.55 * len(labels)
    longest = 0.075 * max(map(len, labels))
    figure, axes = plt.subplots(
        1, len(maps), figsize=(side * len(maps) + longest, side + longest + 0.3), squeeze=False, layout="constrained"
    )
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
