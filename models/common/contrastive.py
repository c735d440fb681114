"""Losses between images and texts that X-VLM and BLIP share: ITC, ITM and its hard negatives.

Li et al., NeurIPS 2021 (ALBEF) introduced them in this form.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from console.errors import InputError

TEMP_RANGE = (0.001, 0.5)
"""Smallest and largest temperature."""


def contrastive_features(states: Tensor, projection: nn.Module) -> Tensor:
    """The first state (CLS) of states [b, t, d] in the contrastive space: [b, e], L2-normalised."""
    return F.normalize(projection(states[:, 0]), dim=-1)


def itc_loss(image_features: Tensor, text_features: Tensor, temp: Tensor) -> Tensor:
    """Image-text contrastive loss: the pairs of a batch must find each other.

    image_features, text_features [b, e], L2-normalised; temp scalar. Returns the mean of the image-to-text
    and the text-to-image cross-entropy.
    """
    similarity = image_features @ text_features.t() / temp
    target = torch.arange(similarity.shape[0], device=similarity.device)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.t(), target)) / 2


def hard_negatives(weights: Tensor) -> Tensor:
    """Draw one negative a row in proportion to `weights` [b, b]; rows must have a positive weight.

    Returns [b] int64. Row by row: `torch.multinomial` on rows, so that a test can put argmax in its place.
    """
    if weights.shape[0] < 2:
        raise InputError(
            "the image-text matching loss needs a wrong partner for each pair, so a batch of one cannot be used: set "
            "--batch_size to 2 or more, or drop the last incomplete batch"
        )
    return torch.cat([torch.multinomial(row, 1) for row in weights])


def similarity_weights(similarity: Tensor, floor: float) -> Tensor:
    """Sampling weights for ITM: softmax of each row plus `floor`, the true pair (diagonal) set to zero. [b, b]."""
    return (similarity.softmax(dim=1) + floor).fill_diagonal_(0)


def same_image_targets(idx: Tensor) -> Tensor:
    """Which pairs [b] belong to one image, each row summing to 1: [b, b] float32."""
    same = (idx[:, None] == idx[None, :]).float()
    return same / same.sum(dim=1, keepdim=True)


def pairs_loss(similarity: Tensor, targets: Tensor) -> Tensor:
    """ITC where a pair may have several right answers: similarity, targets [b, b], rows of targets sum to 1."""
    return (soft_cross_entropy(similarity, targets) + soft_cross_entropy(similarity.t(), targets)) / 2


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of rows [b, n] against distributions [b, n]; their mean."""
    return -(F.log_softmax(logits, dim=1) * targets).sum(dim=1).mean()


def others(weights: Tensor, idx: Tensor) -> Tensor:
    """Sampling weights [b, b] for ITM with the pairs of the same image (idx [b]) set to zero.

    Raises InputError when a pair has no negative image in the batch.
    """
    left = weights.masked_fill(idx[:, None] == idx[None, :], 0)
    if bool((left.sum(dim=1) == 0).any()):
        raise InputError(
            "the image-text matching loss needs a wrong partner for each pair, but all pairs of a batch belong to one "
            "image: use a larger batch, or a training file with more images"
        )
    return left


def matching_loss(logits: Tensor, pairs: int) -> Tensor:
    """Cross-entropy of ITM logits [3b, 2]: the first `pairs` rows match, the others do not."""
    labels = torch.zeros(logits.shape[0], dtype=torch.long, device=logits.device)
    labels[:pairs] = 1
    return F.cross_entropy(logits, labels)
