"""All pairs of some masks of the same layers: how far they keep the same weights, overall, by modality, by layer."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inspection.overlap import Overlap, overlap, together
from inspection.reading import MaskFile, check_same_layers

Pair = tuple[int, int]


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
    """Hold every mask against every other; InputError naming the first layer in which they differ in kind."""
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
