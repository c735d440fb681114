"""X-VLM's box losses: L1 and generalised IoU between a predicted and a true region."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss


def box_losses(predicted: Tensor, target: Tensor, is_image: Tensor) -> dict[str, Tensor]:
    """L1 and GIoU losses of boxes (cx, cy, w, h) in [0, 1], averaged over real regions.

    predicted, target [n, 4]; is_image [n], 1 where the row is a whole image (it has no box to find).
    Returns scalars `bbox` and `giou`; both are 0 when every row is a whole image.
    """
    region = (1 - is_image).to(predicted.dtype)
    count = region.sum().clamp(min=1)  # no region at all: 0/1, not 0/0
    l1 = F.l1_loss(predicted, target, reduction="none").sum(dim=1)
    corners = box_convert(predicted, "cxcywh", "xyxy")
    wanted = box_convert(target, "cxcywh", "xyxy")
    giou = generalized_box_iou_loss(corners, wanted)
    if bool((corners[:, 2:] < corners[:, :2]).any() or (wanted[:, 2:] < wanted[:, :2]).any()):
        giou = torch.zeros_like(giou)
    return {"bbox": (l1 * region).sum() / count, "giou": (giou * region).sum() / count}
