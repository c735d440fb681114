"""Made-up batches with the real fields and real padding: for conformance checks, benchmarks and smoke tests."""

from __future__ import annotations

import torch
from torch import Tensor

from models.base import Batch


def images(size: int, side: int) -> Batch:
    """image [b, 3, side, side], noise."""
    return {"image": torch.randn(size, 3, side, side)}


def texts(size: int, length: int, words: int) -> Batch:
    """text_ids, text_atts [b, L] int64: ids from 5 to `words`, at least three real tokens and some padding."""
    longest = max(4, length)
    atts = (torch.arange(longest) < torch.randint(3, longest, (size, 1))).long()
    return {"text_ids": torch.randint(5, words, (size, longest)) * atts, "text_atts": atts}


def masked(batch: Batch, count: int = 8) -> Batch:
    """The fields of masked language modelling for a batch of `texts`: the first words are the hidden ones."""
    real = batch["text_atts"].sum(dim=1, keepdim=True)
    positions = torch.arange(1, count + 1).expand(len(real), -1) % batch["text_ids"].shape[1]
    there = (positions < real) & (positions > 0)
    originals = batch["text_ids"].gather(1, positions)
    return {
        "text_ids_masked": batch["text_ids"].clone(),
        "masked_pos": positions * there,
        "masked_ids": torch.where(there, originals, -100),
    }


def regions(size: int, groups: int, tokens: int) -> Batch:
    """Which image each of `size` regions lies in, its patch mask [n, p], box and kind; the last is a whole image."""
    seen = (torch.rand(size, tokens) < 0.3).long()
    seen[:, 0] = 1
    seen[-1] = 1
    is_image = torch.zeros(size, dtype=torch.long)
    is_image[-1] = 1
    corner, extent = torch.rand(size, 2) * 0.5, 0.2 + 0.3 * torch.rand(size, 2)
    boxes: Tensor = torch.cat([corner + extent / 2, extent], dim=1)
    return {
        "idx_to_group_img": torch.arange(size) % groups,
        "image_atts": seen,
        "target_bbox": boxes,
        "is_image": is_image,
    }
