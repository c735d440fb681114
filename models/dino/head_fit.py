"""Fit a linear classifier on frozen features in one pass: linear discriminant analysis from running sums.

Gradients through a random head are not meaningful for the backbone. The closed form needs only class means and the
pooled covariance, gives calibrated logits, and does not depend on an optimizer or on the order of the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from console.errors import InputError
from console.words import counted
from models.base import Batch
from models.tasks import check_labels

if TYPE_CHECKING:
    from calibration.processes import Group

SHRINKAGE = 0.1
"""Shrinkage: share of the covariance replaced by its mean variance, so that few samples do not make it singular."""

ROUNDING = 1e-12
"""Share of the mean square of features: a smaller variance in float64 sums is rounding."""


class HeadFit:
    """A statistic over batches with `image` and `label` that fits a classifier in place.

    It has the methods of `calibration.statistics.Statistic` that a pass without checkpoints calls.
    """

    follows_state = False

    def __init__(self, features: Callable[[Tensor], Tensor], classifier: nn.Linear):
        """features(image) -> [b, d], what the classifier reads."""
        self._features, self._classifier = features, classifier
        classes, width = classifier.weight.shape
        self._shapes = {"count": (classes,), "sum": (classes, width), "square": (width, width)}
        self._sums = self._zeros()
        self._fresh = self._zeros()
        self._before = [p.detach().clone() for p in classifier.parameters()]

    def _zeros(self) -> dict[str, Tensor]:
        device = self._classifier.weight.device
        return {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in self._shapes.items()}

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Add one batch's counts, sums a class, and second moments, in float64; InputError for unknown classes."""
        check_labels(batch["label"], len(self._classifier.weight))
        x, labels = self._features(batch["image"]).double(), batch["label"]
        self._fresh["count"] += torch.bincount(labels, minlength=len(self._fresh["count"]))
        self._fresh["sum"].index_add_(0, labels, x)
        self._fresh["square"] += x.t() @ x

    def merge(self, group: Group, ranks: list[int]) -> None:
        """Add the last unit of each process, in rank order."""
        for name, total in self._sums.items():
            for rank in ranks:
                total += group.from_rank(rank, self._fresh[name], like=total)
            self._fresh[name].zero_()

    @torch.no_grad()
    def finish(self) -> None:
        """Solve for the classifier. Classes that were not seen get a low bias.

        InputError if no two images of one class differ: the covariance within classes would be zero.
        """
        count, total, square = (self._sums[name] for name in ("count", "sum", "square"))
        mean = total / count.clamp(min=1)[:, None]
        within = (square - (mean * count[:, None]).t() @ mean) / count.sum()
        if not within.trace() > ROUNDING * square.trace() / count.sum():
            raise InputError(
                f"no classifier can be fitted: of {counted(int(count.sum()), 'image')}, no two of one class differ; "
                "give more samples or batches, or a checkpoint with a classifier"
            )
        scale = within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype, device=within.device)
        weight = torch.linalg.solve((1 - SHRINKAGE) * within + SHRINKAGE * scale, mean.t()).t()
        prior = (count.clamp(min=1e-3) / count.sum()).log()
        self._classifier.weight.copy_(weight)
        self._classifier.bias.copy_(prior - (weight * mean).sum(dim=1) / 2)

    @torch.no_grad()
    def undo(self) -> None:
        """Restore the classifier."""
        for parameter, value in zip(self._classifier.parameters(), self._before, strict=True):
            parameter.copy_(value)
