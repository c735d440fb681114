"""LAMP: magnitude, scaled so that one global threshold adapts the sparsity of each layer. No data.

Lee et al., "Layer-adaptive sparsity for the Magnitude-based Pruning", ICLR 2021.
    python prune.py --pruner lamp

A layer's score grows with magnitude, so one threshold on all scores is one on the magnitudes of each layer. It is found
from counts and sums of squares by narrow bins of magnitude; only bins that may hold it are sorted and scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pruners.base import OneShot
from sparsity.mask import Mask
from sparsity.scores import Scores
from sparsity.select import EVERYTHING, NOTHING, Cut, cut_layer
from sparsity.threads import in_threads

SHIFT = 16
"""Low bits of a magnitude that are dropped: neighbouring bins are at most 0.8 % apart."""

BINS = 0x7F800000 >> SHIFT  # up to infinity
CHUNK = 1 << 19  # magnitudes binned at a time, so that intermediate arrays stay in cache


class LAMP(OneShot):
    """Score W^2 / sum of all squares of the layer that are at least as large (eq. 4)."""

    family = "layer norms"
    keep_scores = False

    def score(self, name: str) -> Tensor:
        """[o, i]; the largest weight of a layer scores 1, so that no layer is pruned whole."""
        return torch.from_numpy(lamp_scores(self.matrix(name).float().cpu().numpy()))

    def cut_all(self, scores: Scores, sparsities: Sequence[float]) -> dict[float, Mask]:
        """One threshold over all layers without scoring every weight; other allocations use all scores."""
        if self.allocation_name != "global" or self.factors:
            return super().cut_all(scores, sparsities)
        magnitudes = self.magnitudes()
        cuts = lamp_cuts(magnitudes, [round(sparsity * scores.total()) for sparsity in sparsities])
        return Mask.cut(magnitudes, lambda name, _: cuts[name], sparsities, self.modality, self.forms)


@dataclass(frozen=True)
class Bins:
    """Magnitudes of a layer by the upper bits of their float: how many [b], and the sum of squares from each on [b+1].

    Sums run in float64 from the large end, since most squares are tiny compared with the total.
    """

    count: np.ndarray
    at_least: np.ndarray

    @classmethod
    def of(cls, magnitudes: np.ndarray) -> Bins:
        """magnitudes: float32, at least 0, any shape."""
        count, squares = np.zeros(BINS, dtype=np.int64), np.zeros(BINS)
        flat = magnitudes.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            # torch's bincount takes 32-bit integers without a copy and releases the GIL.
            bins = torch.from_numpy(part.view(np.int32) >> SHIFT)
            count += torch.bincount(bins, minlength=BINS).numpy()
            squares += torch.bincount(bins, torch.from_numpy(np.square(part, dtype=np.float64)), BINS).numpy()
        return cls(count, np.append(np.cumsum(squares[::-1])[::-1], 0.0))

    def scores(self, ordered: np.ndarray) -> np.ndarray:
        """Scores, float32, of ascending magnitudes that fill whole bins. Equal magnitudes share one score."""
        scores = np.empty_like(ordered)
        bins = ordered.view(np.int32) >> SHIFT
        starts = np.flatnonzero(np.diff(bins, prepend=-1))
        for start, stop in itertools.pairwise([*starts, ordered.size]):
            part = ordered[start:stop]
            squares = np.square(part, dtype=np.float64)
            at_least = np.cumsum(squares[::-1])[::-1] + self.at_least[bins[start] + 1]
            first = np.flatnonzero(np.diff(part, prepend=-1))
            if first.size < part.size:  # equal magnitudes share the sum that starts at the first of them
                at_least = np.repeat(at_least[first], np.diff(np.append(first, part.size)))
            scores[start:stop] = np.divide(squares, at_least, out=squares, where=part > 0)  # a zero weight scores zero
        return scores

    def bounds(self, filled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds on all scores in the bins `filled`, widened by the rounding of another order of summation."""
        lowest = _edge(filled).astype(np.float64) ** 2
        highest = _edge(filled + 1).astype(np.float64) ** 2
        low = np.divide(lowest, self.at_least[filled], out=lowest, where=self.at_least[filled] > 0)
        high = highest / (self.at_least[filled + 1] + highest)
        return (low * (1 - 1e-9)).astype(np.float32), (high * (1 + 1e-9)).astype(np.float32)  # rounded as scores are


def lamp_scores(weight: np.ndarray) -> np.ndarray:
    """LAMP scores of one layer. weight float32, any shape -> float32 of that shape."""
    flat = np.abs(weight.reshape(-1))
    # The bits of a non-negative float order as the float does: magnitude above, position below, one sort for both.
    keys = flat.view(np.int32).astype("<i8")
    keys <<= 32
    keys |= np.arange(flat.size, dtype=np.int64)
    keys.sort()
    position, ordered = keys.view("<i4")[0::2], keys.view("<f4")[1::2].copy()
    scores = np.empty_like(flat)
    scores[position] = Bins.of(flat).scores(ordered)
    return scores.reshape(weight.shape)


@dataclass(frozen=True)
class _ByScore:
    """A cut among different magnitudes with equal (rounded) scores: ties are broken by position."""

    cut: Cut

    def keep(self, magnitudes: np.ndarray) -> np.ndarray:
        return self.cut.keep(lamp_scores(magnitudes))


def lamp_cuts(magnitudes: Scores, counts: Sequence[int]) -> dict[str, list[Cut | _ByScore]]:
    """For each layer, its cuts among magnitudes that prune each of `counts` weights over all layers together.

    The same as the cut of all `lamp_scores`: ties are broken by position, in the order of layers.
    """
    # Scores rise with magnitude within a layer, so the bounds of a bin bound the scores of all its weights.
    bins = dict(zip(magnitudes, in_threads(lambda name: Bins.of(magnitudes[name]), magnitudes), strict=True))
    filled = {name: np.flatnonzero(of.count) for name, of in bins.items()}
    bounds = {name: of.bounds(filled[name]) for name, of in bins.items()}
    number = np.concatenate([of.count[filled[name]] for name, of in bins.items()])
    low, high = (np.concatenate([bounds[name][i] for name in bins]) for i in range(2))
    total, cuts = magnitudes.total(), {name: [] for name in bins}
    windows = {count: _window(low, high, number, count) for count in counts if 0 < count < total}
    ranges = {
        name: [_bins_inside(filled[name], *bounds[name], *window) for window in windows.values()] for name in bins
    }

    def inside(name: str) -> list[np.ndarray]:
        layer = magnitudes[name].reshape(-1)
        return [np.sort(layer[(layer >= _edge(first)) & (layer < _edge(last))]) for first, last in ranges[name]]

    sorted_parts = dict(zip(bins, in_threads(inside, bins), strict=True))
    for count in counts:
        if not 0 < count < total:
            for of_layer in cuts.values():
                of_layer.append(NOTHING if count <= 0 else EVERYTHING)
            continue
        i = list(windows).index(count)
        parts = {name: (part[i], bins[name].scores(part[i])) for name, part in sorted_parts.items()}
        below = sum(int(bins[name].count[: ranges[name][i][0]].sum()) for name in bins)
        [cut] = cut_layer(np.concatenate([scores for _, scores in parts.values()]), [count - below])
        ties = cut.ties
        for name, (ordered, scores) in parts.items():
            edge = _edge(ranges[name][i][1])  # magnitudes from here on are certainly kept
            found, ties = _layer_cut(ordered, scores, Cut(cut.value, ties), edge)
            cuts[name].append(found)
    return cuts


def _layer_cut(ordered: np.ndarray, scores: np.ndarray, cut: Cut, edge: np.float32) -> tuple[Cut | _ByScore, int]:
    """A layer's cut among its ascending magnitudes near the threshold, and the ties left for later layers."""
    first, last = (int(np.searchsorted(scores, np.float32(cut.value), side)) for side in ("left", "right"))
    ties = min(cut.ties, last - first)
    values = np.append(ordered, edge)
    if ties and ordered[first] != ordered[last - 1] and ties < last - first:
        return _ByScore(Cut(cut.value, ties)), cut.ties - ties
    if ties == last - first:  # all tied weights of this layer are pruned, or it has none
        return Cut(float(values[last]), 0), cut.ties - ties
    return Cut(float(values[first]), ties), cut.ties - ties


def _window(low: np.ndarray, high: np.ndarray, number: np.ndarray, count: int) -> tuple[float, float]:
    """Two scores between which the `count`-th smallest lies, from bounds and sizes of bins."""

    def reached(bound: np.ndarray) -> float:
        order = np.argsort(bound)
        return float(bound[order[np.searchsorted(np.cumsum(number[order]), count)]])

    return reached(low), reached(high)


def _bins_inside(filled: np.ndarray, low: np.ndarray, high: np.ndarray, least: float, most: float) -> tuple[int, int]:
    """The range of bins of a layer that may hold a score in [least, most]: the first, and the one after the last."""
    open_ = (high >= least) & (low <= most)
    if open_.any():
        return int(filled[open_][0]), int(filled[open_][-1]) + 1
    after = int(filled[high >= least][0]) if (high >= least).any() else BINS
    return after, after


def _edge(first: int | np.ndarray) -> np.ndarray:
    """The least magnitude of a bin, or of bins, float32."""
    return (np.asarray(first, dtype=np.int64) << SHIFT).astype(np.int32).view(np.float32)
