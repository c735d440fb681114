"""Classification with frozen features: by the nearest neighbours, and by a linear probe.

The protocol of DINO (Caron et al., ICCV 2021, section 4): cosine similarity of class-token states, the k = 20
nearest images of a labelled bank, each vote weighs exp(similarity / 0.07) (Wu et al., CVPR 2018). The probe is a
logistic regression on the same features, fitted to its optimum (as in Radford et al., ICML 2021, appendix A.3).
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
    """Classification of images by their features."""

    bank: LabelledSet  # labelled images that vote
    queries: LabelledSet  # images to classify
    k: int = 20  # neighbours that vote
    temperature: float = 0.07  # of the softmax weights of votes
    centre: float = 0.875  # side of the centre crop as a share of the shorter side: 224 of 256; 1.0: the whole image
    batch: int = 128  # images per forward pass
    probe: float | None = None  # also a linear probe, with this weight of its squared weights; none: no probe

    def __post_init__(self) -> None:
        at_least(self, 1, "k", "batch")
        if not self.temperature > 0:
            raise InputError(f"neighbours: the temperature must be above 0, not {self.temperature}")
        if not 0 < self.centre <= 1:
            raise InputError(f"neighbours: centre is a share of the side, above 0 and at most 1, not {self.centre}")
        if self.probe is not None and not self.probe > 0:
            raise InputError(f"neighbours: the probe's weight must be above 0, not {self.probe}")


class Neighbours:
    """A bank and queries, opened once for any number of models of one image shape."""

    def __init__(self, settings: NeighbourSettings, shape: ImageShape):
        self._settings = settings
        self.bank, self.queries = (
            ImagesToClassify(images, shape, share=settings.centre) for images in (settings.bank, settings.queries)
        )
        known, asked = self.bank.source.classes, self.queries.source.classes
        if known[: len(asked)] != asked:  # labels are positions in these lists
            different = ", ".join(sorted(set(known) ^ set(asked))[:10])
            raise InputError(
                f"the classes of bank and queries differ ({len(known)} and {len(asked)}; on one side only: "
                f"{different}), and with them their numbers: fix the class folders"
            )

    def right(self, model: ImageEmbedder) -> dict[str, Tensor]:
        """Whether each query is classified correctly, [q] bool, by the vote and, if configured, by the probe."""
        bank, labels = self._features(model, self.bank)
        queries, truth = self._features(model, self.queries)
        settings = self._settings
        found = {f"{settings.k}-NN": vote(queries, bank, labels, settings.k, settings.temperature) == truth}
        if settings.probe is not None:
            found["linear probe"] = probe(queries, bank, labels, settings.probe) == truth
        return found

    @torch.no_grad()
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
    # Relative to the nearest: the winner is the same, and the exponential does not overflow at any temperature.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = torch.zeros(q, classes, dtype=weights.dtype, device=weights.device)
    return votes.scatter_add_(1, labels[index], weights).argmax(dim=1)


def probe(queries: Tensor, bank: Tensor, labels: Tensor, decay: float) -> Tensor:
    """The class [q] of each of `queries` [q, d] by a logistic regression on `bank` [n, d] with `labels` [n].

    It minimises the mean cross-entropy plus decay / 2 times the sum of squared weights; biases are free.
    """
    # Pruned models have smaller features: standardised by the bank, one decay means the same for all models.
    bank, queries = bank.double(), queries.double()
    mean, deviation = bank.mean(dim=0), bank.std(dim=0, unbiased=False)
    scale = torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.inf)  # dead channels become 0
    bank, queries = (bank - mean) / scale, (queries - mean) / scale
    classes = int(labels.max()) + 1
    weight = bank.new_zeros(classes, bank.shape[1], requires_grad=True)
    bias = bank.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            value = F.cross_entropy(F.linear(bank, weight, bias), labels) + decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return F.linear(queries, weight, bias).argmax(dim=1)
