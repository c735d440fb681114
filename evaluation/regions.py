"""How well a model finds what a text names: IoU of predicted and true boxes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from data.batches import Side


@torch.no_grad()
def region_ious(model: nn.Module, side: Side, batches: int) -> Tensor:
    """IoU [n] of the regions (not the whole images) of the first `batches` region batches, in their order.

    model: answers `image_states`, `text_states` and `predict_boxes` (X-VLM).
    """
    device = next(model.parameters()).device
    found: list[Tensor] = []
    for t in range(batches):
        batch = {name: tensor.to(device) for name, tensor in side[t].batch.items()}
        _, _, full = model.image_states(batch)
        text = model.text_states(batch["text_ids"], batch["text_atts"])
        boxes = model.predict_boxes(text, batch["text_atts"], full)
        region = batch["is_image"] == 0
        corners = [box_convert(b[region], "cxcywh", "xyxy") for b in (boxes, batch["target_bbox"])]
        found.append(box_iou(*corners).diagonal().cpu())
    return torch.cat(found)


def mean_iou(model: nn.Module, side: Side, batches: int) -> float:
    """Their mean, in percent."""
    return 100 * region_ious(model, side, batches).mean().item()
