"""What frozen features know: classes of images by the vote of their nearest neighbours, nothing is trained.

The protocol of DINO (Caron et al., ICCV 2021, section 4): cosine similarity of class-token states, the k = 20
nearest images of a labelled bank, each vote weighs exp(similarity / 0.07) (Wu et al., CVPR 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import transforms as T

from console.errors import InputError
from data.images import ImageError
from data.labelled import LabelledSet, LabelledTable
from data.sources import LabelledImages
from data.transforms import BICUBIC, to_normalised
from models.base import ImageShape
from models.tasks import ImageEmbedder


@dataclass(frozen=True)
class NeighbourSettings:
    """bank: images that vote. queries: images that are asked about. centre: share of the side kept of the centre.

    centre 0.875 is the usual 224 of 256 pixels; 1.0 keeps the whole of a square image.
    """

    bank: LabelledSet
    queries: LabelledSet
    k: int = 20
    temperature: float = 0.07
    centre: float = 0.875
    batch: int = 128

    def __post_init__(self) -> None:
        if self.k < 1 or self.batch < 1:
            raise InputError(f"neighbours: k and batch must be at least 1, not {self.k} and {self.batch}")
        if self.temperature <= 0:
            raise InputError(f"neighbours: the temperature must be above 0, not {self.temperature}")
        if not 0 < self.centre <= 1:
            raise InputError(f"neighbours: centre is a share of the side, above 0 and at most 1, not {self.centre}")


class Neighbours:
    """A bank and queries, opened once, to be asked of any number of models of one image shape."""

    def __init__(self, settings: NeighbourSettings, shape: ImageShape):
        self._settings = settings
        self._transform = centre_transform(shape, settings.centre)
        self.bank, self.queries = settings.bank.open(), settings.queries.open()

    def accuracy(self, model: ImageEmbedder) -> float:
        """Queries whose class wins the vote, in percent."""
        return 100 * self.right(model).double().mean().item()

    @torch.no_grad()
    def right(self, model: ImageEmbedder) -> Tensor:
        """Whether the class of each query wins the vote, [q] bool."""
        bank, labels = self._features(model, self.bank)
        queries, truth = self._features(model, self.queries)
        return vote(queries, bank, labels, self._settings.k, self._settings.temperature) == truth

    def _features(self, model: ImageEmbedder, source: LabelledImages | LabelledTable) -> tuple[Tensor, Tensor]:
        """Vectors [n, d] and labels [n] of all images of a source."""
        device = next(model.parameters()).device
        features, labels = [], []
        for start in range(0, len(source), self._settings.batch):
            images = []
            for index in range(start, min(start + self._settings.batch, len(source))):
                try:
                    image, label = source.read(index)
                except ImageError as error:
                    raise InputError(f"all labelled images must be there, but one cannot be read: {error}") from error
                images.append(self._transform(image))
                labels.append(label)
            features.append(model.embed_image(torch.stack(images).to(device)).float())
        return torch.cat(features), torch.tensor(labels, device=device)


def centre_transform(shape: ImageShape, centre: float) -> T.Compose:
    """Resize the shorter side so that the model's square is `centre` of it, cut the middle out, normalise."""
    side = shape.image_size
    return T.Compose([T.Resize(round(side / centre), interpolation=BICUBIC), T.CenterCrop(side), to_normalised(shape)])


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
