"""Recall at 1, 5 and 10 in both directions, from similarities and the scores of re-ranked candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.items import RECALLS, Groups, Items

RECALL_WORDS = {"r_mean": "mean recall", "txt_r_mean": "text mean recall", "img_r_mean": "image mean recall"} | {
    f"{label}_r{k}": f"{of} R@{k}" for label, of in (("txt", "text"), ("img", "image")) for k in RECALLS
}
"""Key of `recalls` -> its name in tables."""


@dataclass(frozen=True)
class Candidates:
    """A model's scores of m candidates for each of n queries.

    similarity [n, m]: of all, higher is better. scores [n, m] and reranked [n, m] bool: the scores of re-ranked
    candidates, which precede the others; those keep the order of similarity. None: no re-ranking.
    """

    similarity: Tensor
    scores: Tensor | None = None
    reranked: Tensor | None = None

    def order(self, query: int) -> Tensor:
        """The candidates [m] of a query from the first to the last; equal ones in the order of their number."""
        similarity = self.similarity[query]
        if self.scores is None or self.reranked is None:
            return falling(similarity)
        reranked = self.reranked[query]
        # Two stable sorts, the deciding one last. The first puts re-ranked candidates in front in the order of their
        # numbers, so that their ties are not broken by similarity.
        order = falling(similarity.masked_fill(reranked, math.inf))
        return order[falling(self.scores[query].masked_fill(~reranked, -math.inf)[order])]


def falling(values: Tensor) -> Tensor:
    """Positions [..., m] of values [..., m] from the highest to the lowest, equal ones in the order of position."""
    return torch.argsort(values, dim=-1, descending=True, stable=True)


@dataclass(frozen=True)
class Ranks:
    """Ranks of the right answers, from 0, int64: for each image its best caption, for each text its image."""

    of_images: Tensor
    of_texts: Tensor


def ranks(
    texts: Candidates, images: Candidates, texts_of_image: Sequence[Sequence[int]], image_of_text: Sequence[int]
) -> Ranks:
    """texts: candidates [images, texts] for each image. images: candidates [texts, images] for each text."""
    of_images = [min(_ranks(texts.order(i), own)) for i, own in enumerate(texts_of_image)]
    of_texts = [_ranks(images.order(j), [own])[0] for j, own in enumerate(image_of_text)]
    return Ranks(torch.tensor(of_images), torch.tensor(of_texts))


def recalls(found: Ranks) -> dict[str, float]:
    """`txt_r1`, ..., `r_mean`, in percent with two digits; the keys are the published ones."""
    result = {}
    for label, places in (("txt", found.of_images), ("img", found.of_texts)):
        for k in RECALLS:
            result[f"{label}_r{k}"] = 100 * (places < k).double().mean().item()
        result[f"{label}_r_mean"] = sum(result[f"{label}_r{k}"] for k in RECALLS) / len(RECALLS)
    result["r_mean"] = (result["txt_r_mean"] + result["img_r_mean"]) / 2
    return {key: round(value, 2) for key, value in result.items()}


def found_early(by_start: Mapping[str, Ranks], image_of_text: Sequence[int]) -> Groups:
    """Whether the right answer is among the first 1, 5 and 10, for each text and each image by its number.

    by_start: ranks by what the metric's name begins with. The form is that of evaluation/items.py: a text's picture is
    the number of its image.
    """

    def items(label: str, places: Mapping[str, Tensor], pictures: Sequence[int]) -> Items:
        scores = {f"{start}{label}_r{k}": (of < k).double().tolist() for start, of in places.items() for k in RECALLS}
        return Items(list(range(len(pictures))), list(pictures), scores)

    images = range(len(next(iter(by_start.values())).of_images))
    return {
        "text": items("img", {start: found.of_texts for start, found in by_start.items()}, image_of_text),
        "image": items("txt", {start: found.of_images for start, found in by_start.items()}, images),
    }


def _ranks(order: Tensor, targets: Sequence[int]) -> list[int]:
    """Rank (from 0) of each target in an order [m]."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank[list(targets)].tolist()
