"""Grounding: IoU of a model's predicted boxes of regions, given their texts, with the true ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from console.progress import say_once
from console.words import counted
from data.batches import Loaded, Side
from models.tasks import Locator


@torch.no_grad()
def region_ious(model: Locator, side: Side, batches: int) -> tuple[Tensor, list[int]]:
    """IoU [n] of the regions (without whole images) of the first `batches` batches, and the picture of each region."""
    device = next(model.parameters()).device
    found: list[Tensor] = []
    numbers: dict[object, int] = {}
    pictures: list[int] = []
    failed: list[str] = []
    for t in range(batches):
        loaded = side[t]
        failed += loaded.failed
        batch = {name: tensor.to(device) for name, tensor in loaded.batch.items()}
        boxes = model.boxes(batch)
        region = batch["is_image"] == 0
        corners = [box_convert(b[region], "cxcywh", "xyxy") for b in (boxes, batch["target_bbox"])]
        found.append(box_iou(*corners).diagonal().cpu())
        views = _views(loaded, t)
        for group in batch["idx_to_group_img"][region].tolist():
            pictures.append(numbers.setdefault(views[group], len(numbers)))
    if failed:
        words = counted(len(failed), "record")
        say_once(f"regions: others took the place of {words} that cannot be used, such as {failed[0]}")
    return torch.cat(found), pictures


def _views(loaded: Loaded, t: int) -> list[object]:
    """The picture of each view of batch t, by its record, which other batches may share."""
    views = len(loaded.batch["image"])
    if len(loaded.used) == views:
        return list(loaded.used)
    return [(t, view) for view in range(views)]  # a view without a text was left out, and it is unknown which
