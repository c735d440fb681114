"""Recall at 1, 5 and 10 in both directions, from score matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def recalls(
    image_to_text: Tensor, text_to_image: Tensor, texts_of_image: Sequence[Sequence[int]], image_of_text: Sequence[int]
) -> dict[str, float]:
    """The field's keys, in percent with two digits.

    image_to_text [images, texts], text_to_image [texts, images]: higher is better. An image's rank is the best rank
    among its captions.
    """
    texts = torch.tensor([min(_ranks(image_to_text[i], own)) for i, own in enumerate(texts_of_image)])
    images = torch.tensor([_ranks(text_to_image[j], [own])[0] for j, own in enumerate(image_of_text)])
    result = {}
    for label, ranks in (("txt", texts), ("img", images)):
        for k in (1, 5, 10):
            result[f"{label}_r{k}"] = 100 * (ranks < k).double().mean().item()
        result[f"{label}_r_mean"] = sum(result[f"{label}_r{k}"] for k in (1, 5, 10)) / 3
    result["r_mean"] = (result["txt_r_mean"] + result["img_r_mean"]) / 2
    return {key: round(value, 2) for key, value in result.items()}


def _ranks(scores: Tensor, targets: Sequence[int]) -> list[int]:
    """Rank (from 0) of each target in a row of scores; equal scores are in the order of their position."""
    order = torch.argsort(scores, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank[list(targets)].tolist()
