"""Allocations that rank blocks or layers first, and give each a sparsity of its own near that of the model.

Within a layer every row has the layer's sparsity, as in Wanda. Published for language models, whose blocks are of one
size: here a sparsity is a share of the weights of a layer, and that of the model is exact whatever the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from sparsity.allocation import LayerCuts, Modality, allocation
from sparsity.groups import GroupCut
from sparsity.scores import Scores
from sparsity.threads import in_threads

OUTLIER = 5.0
"""M of OWL: an outlier is a score of more than so many times the block's mean."""

SPREAD = 0.08
"""Lambda of OWL: the largest difference between the sparsity of a block and that of the model."""

MARGIN = 0.1
"""By how much a layer may be sparser than the model, as in the authors' scripts."""

TINY = 1e-6
"""Smallest importance, as a share of the largest, so that no layer is stuck at the least density."""


@allocation("model", by_row=True)
def cut_by_outliers(scores: Scores, magnitudes: Scores, modality: Modality, sparsities: Sequence[float]) -> LayerCuts:
    """OWL: blocks with a larger share of outliers keep more.

    Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", ICML 2024, section 3. Its outliers are those of Wanda's
    scores; with another method they are those of its own.
    """
    blocks = in_blocks(scores)

    def total(name: str) -> float:
        return float(scores[name].sum(dtype=np.float64))

    totals = dict(zip(scores, in_threads(total, scores), strict=True))
    sizes = {block: sum(map(scores.size, names)) for block, names in blocks.items()}
    limits = {
        name: np.float32(OUTLIER * sum(totals[other] for other in names) / sizes[block])
        for block, names in blocks.items()
        for name in names
    }

    def outliers(name: str) -> int:
        return int(np.count_nonzero(scores[name] > limits[name]))

    found = dict(zip(scores, in_threads(outliers, scores), strict=True))
    ratios = np.array([sum(found[name] for name in names) / sizes[block] for block, names in blocks.items()])
    span = np.ptp(ratios)
    ranks = (ratios - ratios.min()) / (span if span else 1)

    def densities(sparsity: float) -> Callable[[float], np.ndarray]:
        spread = min(SPREAD, (1 - sparsity) / 2)  # a block keeps some weights at any sparsity
        return lambda level: np.clip(2 * spread * ranks + level, 0, 1)

    return _cut_at_densities(scores, blocks, [(s, densities(s), (-1.0, 1.0)) for s in sparsities])


@allocation("model", by_row=True, ranked=True)
def cut_by_importance(
    scores: Scores,
    magnitudes: Scores,
    modality: Modality,
    sparsities: Sequence[float],
    importance: Mapping[str, float],
) -> LayerCuts:
    """Each layer keeps the least share, and a share of what is left in proportion to its importance.

    Sung et al., "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models", ICLR 2024; TAMP
    shares by the same rule. What exceeds a full layer goes to the others.
    """
    ranks = np.array([importance[name] for name in scores], dtype=np.float64)
    most = ranks.max()
    ranks = np.maximum(ranks / most, TINY) if most > 0 else np.ones_like(ranks)

    def densities(sparsity: float) -> Callable[[float], np.ndarray]:
        least = max(0.0, 1 - sparsity - MARGIN)
        return lambda level: np.minimum(least + level * ranks, 1)

    alone = {name: [name] for name in scores}
    return _cut_at_densities(scores, alone, [(s, densities(s), (0.0, 1 / float(ranks.min()))) for s in sparsities])


def in_blocks(names: Iterable[str]) -> dict[str, list[str]]:
    """The layers of each block of a model: of one place in the innermost list of blocks, or of one module outside.

    A layer's own place in a list, as in nn.Sequential, makes no block.
    """
    blocks: dict[str, list[str]] = {}
    for name in names:
        above = name.split(".")[:-2]
        numbers = [place for place, part in enumerate(above) if part.isdigit()]
        blocks.setdefault(".".join(above[: numbers[-1] + 1] if numbers else above), []).append(name)
    return blocks


def _cut_at_densities(
    scores: Scores,
    blocks: Mapping[str, Sequence[str]],
    asked: Sequence[tuple[float, Callable[[float], np.ndarray], tuple[float, float]]],
) -> LayerCuts:
    """Cuts that keep shares of the layers of each block.

    asked: for each sparsity, a function from a level to the share [blocks] that each keeps, which rises with it, and
    the levels at which nothing and everything is kept. The level is the one at which the model has the sparsity.
    """
    names = [name for of_block in blocks.values() for name in of_block]
    block = np.repeat(np.arange(len(blocks)), [len(of_block) for of_block in blocks.values()])
    sizes = np.array([scores.size(name) for name in names])
    pruned = []
    for sparsity, densities, (low, high) in asked:
        kept = sizes.sum() - round(sparsity * int(sizes.sum()))
        for _ in range(200):  # halved until it is exact in float64
            level = (low + high) / 2
            low, high = (level, high) if (densities(level)[block] * sizes).sum() < kept else (low, level)
        pruned.append(dict(zip(names, sizes - _whole(densities(high)[block] * sizes, int(kept)), strict=True)))
    return lambda name, layer: [GroupCut(int(counts[name]), layer.shape[1]) for counts in pruned]


def _whole(wanted: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers next to those wanted, of this sum: the largest remainders are rounded up."""
    whole = np.floor(wanted).astype(np.int64)
    left = total - int(whole.sum())
    order = np.argsort(whole - wanted, kind="stable")
    whole[order[:left] if left > 0 else order[left:] if left < 0 else []] += np.sign(left)
    return whole
