"""X-VLM's box losses: L1 and generalised IoU between a predicted and a true region; and guides for small models."""

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


def guidance_loss(attention: Tensor, patches: Tensor) -> Tensor:
    """How little of a text's attention falls on the region it describes: mean of -log of the share that does.

    attention [n, h, p], softmax over image tokens; patches [n, p], 1 for CLS and the region's patches. Scalar.
    """
    region = patches[:, None, 1:].to(attention.dtype)
    share = (attention[:, :, 1:] * region).sum(dim=2)
    return -share.clamp(min=1e-6).log().mean()


def patch_box_loss(predicted: Tensor, target: Tensor, patches: Tensor) -> Tensor:
    """L1 + GIoU of the boxes that single patches tell, averaged over all patches of all regions.

    predicted [n, p, 4]; target [n, 4], the box of the region; patches [n, p], 1 for CLS and the region's patches.
    """
    inside = patches[:, 1:].bool()
    wanted = target[:, None].expand(-1, inside.shape[1], -1)[inside]
    losses = box_losses(predicted[:, 1:][inside], wanted, torch.zeros_like(wanted[:, 0]))
    return losses["bbox"] + losses["giou"]
