"""k-nearest-neighbour classification with frozen features, without training.

The protocol of DINO (Caron et al., ICCV 2021, section 4): cosine similarity of class-token states, the k = 20
nearest images of a labelled bank, each vote weighs exp(similarity / 0.07) (Wu et al., CVPR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.limits import at_least
from console.errors import InputError
from data.classification import ImagesToClassify
from data.evaluation_batches import evaluation_batches
from data.labelled import LabelledSet
from models.base import ImageShape
from models.tasks import ImageEmbedder


@dataclass(frozen=True)
class NeighbourSettings:
    """k-nearest-neighbour classification of images by their features."""

    bank: LabelledSet  # labelled images that vote
    queries: LabelledSet  # images to classify
    k: int = 20  # neighbours that vote
    temperature: float = 0.07  # of the softmax weights of votes
    centre: float = 0.875  # side of the centre crop as a share of the shorter side: 224 of 256; 1.0: the whole image
    batch: int = 128  # images per forward pass

    def __post_init__(self) -> None:
        at_least(self, 1, "k", "batch")
        if not self.temperature > 0:
            raise InputError(f"neighbours: the temperature must be above 0, not {self.temperature}")
        if not 0 < self.centre <= 1:
            raise InputError(f"neighbours: centre is a share of the side, above 0 and at most 1, not {self.centre}")


class Neighbours:
    """A bank and queries, opened once, to be asked of any number of models of one image shape."""

    def __init__(self, settings: NeighbourSettings, shape: ImageShape):
        self._settings = settings
        self.bank, self.queries = (
            ImagesToClassify(images, shape, share=settings.centre) for images in (settings.bank, settings.queries)
        )

    @torch.no_grad()
    def right(self, model: ImageEmbedder) -> Tensor:
        """Whether the class of each query wins the vote, [q] bool."""
        bank, labels = self._features(model, self.bank)
        queries, truth = self._features(model, self.queries)
        return vote(queries, bank, labels, self._settings.k, self._settings.temperature) == truth

    def _features(self, model: ImageEmbedder, images: ImagesToClassify) -> tuple[Tensor, Tensor]:
        """Vectors [n, d] and labels [n] of all images."""
        device = next(model.parameters()).device
        features, labels = [], []
        for batch in evaluation_batches(images, self._settings.batch):
            features.append(model.embed_image(batch["image"].to(device)).float())
            labels.append(batch["label"].to(device))
        return torch.cat(features), torch.cat(labels)


def vote(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float) -> Tensor:
    """The class [q] that the k nearest of `bank` [n, d] with `labels` [n] give each of `queries` [q, d].

    Similarity is the cosine. With fewer than k images in the bank, all vote. Of equal votes the lowest class wins.
    """
    q, classes = len(queries), int(labels.max()) + 1
    near = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).t()
    similarity, index = near.topk(min(k, len(bank)), dim=1)
    # relative to the nearest: the same winner, and no temperature makes the exponential overflow
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = torch.zeros(q, classes, dtype=weights.dtype, device=weights.device)
    return votes.scatter_add_(1, labels[index], weights).argmax(dim=1)
