"""Allocations: how many weights are pruned in each layer, given the scores of the criterion.

An allocation turns scores into a cut for every layer. All have the same signature: the scores, the magnitudes |W| (used
by the multimodal prior only), the modality of each layer and the sparsities. They return a function that gives the cuts
of one layer from its scores, so that an allocation within layers reads each score once. Exactly round(s n) weights are
pruned, over all layers, per layer or per modality. Those that rank layers first are in sparsity/layer_ratios.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from console.errors import InputError
from sparsity import ALLOCATIONS
from sparsity.groups import GroupCut, GuardedCut, check_pattern, guarded, parse_pattern
from sparsity.mask import Mask
from sparsity.scores import Scores
from sparsity.select import Cut, cut_layer, cut_layers, split_ties
from sparsity.threads import in_threads

Modality = Mapping[str, str]
LayerCuts = Callable[[str, np.ndarray], Sequence[Cut | GroupCut | GuardedCut]]
"""Name of a layer and its scores [o, i] -> its cut at each sparsity."""


@dataclass(frozen=True)
class Allocation:
    """A function from scores, magnitudes, modalities and sparsities to the cuts of each layer, and what it promises.

    part: what has exactly the given sparsity: the model, each modality or each layer. by_row: whether every row of a
    layer has that layer's sparsity. compares: whether a layer's share depends on other layers. ranked: whether it needs
    the importance of layers, which is measured in a pass of its own (calibration.MEASURES).
    """

    cut: Callable[..., LayerCuts]
    part: str = "model"
    by_row: bool = False
    compares: bool = True
    ranked: bool = False

    def __call__(self, *arguments: Any, **measured: Any) -> LayerCuts:
        """The cuts. measured: what some allocations know of layers besides their scores."""
        return self.cut(*arguments, **measured)


def allocation(part: str, **promises: bool) -> Callable[[Callable[..., LayerCuts]], Allocation]:
    """Make a function an allocation."""
    return lambda cut: Allocation(cut, part, **promises)


EXACT = 1e-9
"""Largest difference from the pattern's sparsity, for rounding."""


@allocation("model")
def cut_globally(scores: Scores, magnitudes: Scores, modality: Modality, sparsities: Sequence[float]) -> LayerCuts:
    """One threshold over all layers."""
    # Exact counts over all layers; ties at the threshold are then assigned to layers in order.
    found = cut_layers(scores, [round(sparsity * scores.total()) for sparsity in sparsities])
    cuts = [split_ties(scores, cut) for cut in found]
    return lambda name, layer: [of_layers[name] for of_layers in cuts]


@allocation("layer", compares=False)
def cut_by_layer(scores: Scores, magnitudes: Scores, modality: Modality, sparsities: Sequence[float]) -> LayerCuts:
    """The same sparsity in every layer."""
    return lambda name, layer: cut_layer(layer, [round(sparsity * layer.size) for sparsity in sparsities])


@allocation("modality")
def cut_by_modality(scores: Scores, magnitudes: Scores, modality: Modality, sparsities: Sequence[float]) -> LayerCuts:
    """One threshold within each modality: every modality has the given sparsity, its layers differ."""
    groups: dict[str, list[str]] = {}
    for name in scores:
        groups.setdefault(modality[name], []).append(name)
    of_group = {
        name: cuts
        for names in groups.values()
        for cuts in [cut_globally(scores.only(names), magnitudes, modality, sparsities)]
        for name in names
    }
    return lambda name, layer: of_group[name](name, layer)


@allocation("layer", by_row=True, compares=False)
def cut_by_row(scores: Scores, magnitudes: Scores, modality: Modality, sparsities: Sequence[float]) -> LayerCuts:
    """The same sparsity in every output row of a layer (Wanda's comparison group), up to one weight."""
    return lambda name, layer: [GroupCut(round(sparsity * layer.size), layer.shape[1]) for sparsity in sparsities]


def allocation_named(name: str) -> Allocation:
    """The allocation of that name, or of a pattern such as 2:4; InputError with the nearest one when there is none."""
    pattern = parse_pattern(name)
    return ALLOCATIONS[name] if pattern is None else pattern_allocation(*pattern)


def check_allocation(
    name: str, sparsities: Sequence[float], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> None:
    """InputError when there is no allocation `name`, or it cannot give one of the sparsities or shapes [o, i]."""
    allocation_named(name)
    pattern = parse_pattern(name)
    if pattern is None:
        return
    kept, width = pattern
    only = 1 - kept / width
    if any(abs(sparsity - only) > EXACT for sparsity in sparsities):
        raise InputError(
            f"the pattern {name} has a sparsity of exactly {100 * only:g} %: ask for that (-s {100 * only:g})"
        )
    for layer, shape in (shapes or {}).items():
        if shape[1] % width:
            raise InputError(
                f"layer '{layer}' has {shape[1]} inputs, which {name} cannot divide into {width}s: take another "
                "pattern or another allocation"
            )


def pattern_allocation(kept: int, width: int) -> Allocation:
    """n:m sparsity: of every `width` neighbouring inputs, `kept` are kept, so that only one sparsity is possible.

    A method in rounds prunes less in its first rounds. It then prunes the lowest of all scores except the `kept` best
    of each group, so that the pattern can still be reached.
    """

    @allocation("layer", by_row=True, compares=False)
    def cut_by_pattern(
        scores: Scores, magnitudes: Scores, modality: Modality, sparsities: Sequence[float]
    ) -> LayerCuts:
        def whole(layer: np.ndarray) -> GroupCut:
            return GroupCut(layer.size // width * (width - kept), width)

        early = [sparsity for sparsity in sparsities if sparsity < 1 - kept / width - EXACT]
        if not early:
            return lambda name, layer: [whole(layer)] * len(sparsities)

        def packed(name: str) -> np.ndarray:
            layer = scores[name]
            return np.packbits(whole(layer).keep(layer))

        best = dict(zip(scores, in_threads(packed, scores), strict=True))
        others = Scores(scores.shapes, lambda name: guarded(scores[name], best[name]))
        on_the_way = cut_globally(others, magnitudes, modality, early)

        def of_layer(name: str, layer: np.ndarray) -> list[GroupCut | GuardedCut]:
            found = dict(zip(early, on_the_way(name, layer), strict=True))
            return [GuardedCut(found[s], best[name]) if s in found else whole(layer) for s in sparsities]

        return of_layer

    return cut_by_pattern


def check_kept(name: str, mask: Mask, sparsity: float) -> None:
    """InputError naming the first part of a mask whose number of weights differs from the allocation `name`."""
    if pattern := parse_pattern(name):
        check_pattern(mask, *pattern)
        return
    promised = allocation_named(name)
    parts = {
        "model": {"the model": list(mask)},
        "layer": {f"layer '{layer}'": [layer] for layer in mask},
        "modality": {f"modality '{modality}'": names for modality, names in mask.layers_by_modality().items()},
    }[promised.part]
    for what, names in parts.items():
        size, kept = sum(map(mask.size, names)), sum(map(mask.kept, names))
        if size - kept != round(sparsity * size):
            raise InputError(
                f"{size - kept} of {size} weights of {what} are pruned instead of {round(sparsity * size)}"
            )
    for layer in mask if promised.by_row else ():
        by_row = mask.matrix(layer).sum(dim=1)
        if by_row.max() - by_row.min() > 1:
            raise InputError(f"rows of layer '{layer}' keep from {by_row.min()} to {by_row.max()} weights")


@allocation("modality")
def cut_multimodally(scores: Scores, magnitudes: Scores, modality: Modality, sparsities: Sequence[float]) -> LayerCuts:
    """MULTIFLOW's multimodal prior (eq. 7) and mask (eq. 8).

    Magnitude pruning within each modality decides how many weights of a layer are pruned; the scores decide which.
    """
    # Magnitudes compare layers of one modality, but not modalities, whose weights differ in scale (eq. 7).
    prior = cut_by_modality(magnitudes, magnitudes, modality, sparsities)

    def of_layer(name: str, layer: np.ndarray) -> list[Cut]:
        weights = magnitudes[name]
        return cut_layer(layer, [cut.below(weights) for cut in prior(name, weights)])

    return of_layer
