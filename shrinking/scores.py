"""Scores of a model on the calibration data: the Z whose drop is the error of a part. Larger is better.

loss      minus the model's own loss (any model)
accuracy  percent of images that are classified correctly (classifiers)
itc       minus the contrastive loss over all pairs (models with features of images and of texts)
recall    mean recall at 1, 5 and 10 in both directions (the same models)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from console.errors import InputError, nearest
from evaluation.items import RECALLS
from models.base import Batch, Model
from models.common.contrastive import itc_loss
from models.tasks import Classifier, Retriever

SCORES = ("itc", "recall", "accuracy", "loss")


@dataclass(frozen=True)
class Score:
    """runs: functions of a batch, each to a tensor with a row per sample. value: from the rows of all samples, by run.

    loss: a differentiable substitute for Taylor, a scalar of a batch. smooth: whether the gradients of rows show which
    tokens they depend on.
    """

    runs: tuple[Callable[[Batch], Tensor], ...]
    value: Callable[[list[Tensor]], float]
    loss: Callable[[Batch], Tensor]
    smooth: bool = False


def default_score(model: Model) -> str:
    """`itc` for models with features of images and texts, else `loss`."""
    return "itc" if isinstance(model, Retriever) else "loss"


def score_of(model: Model, name: str) -> Score:
    """The score of that name; InputError if it is not for this model."""
    if name not in SCORES:
        raise InputError(f"unknown score '{name}'{nearest(name, SCORES)}: choose one of {', '.join(SCORES)}")
    if name == "loss":
        return Score((lambda batch: _a_row_each(model, batch),), lambda found: -float(found[0].mean()), model.loss)
    if name == "accuracy":
        if not isinstance(model, Classifier):
            raise InputError(f"--score accuracy needs a classifier, not a {type(model).__name__}: choose loss")
        return Score((lambda batch: _right(model, batch),), lambda found: 100 * float(found[0].mean()), model.loss)
    if not isinstance(model, Retriever):
        raise InputError(
            f"--score {name} compares features of images and texts, which a {type(model).__name__} lacks: choose loss"
        )
    images = lambda batch: model.image_entry(batch["image"])[1]  # noqa: E731
    texts = lambda batch: model.text_entry(batch["text_ids"], batch["text_atts"])[1]  # noqa: E731

    def itc(found: list[Tensor]) -> float:
        return -float(itc_loss(*(part.double() for part in found), model.temp.detach().double()))

    def loss(batch: Batch) -> Tensor:
        return itc_loss(images(batch), texts(batch), model.temp)

    return Score((images, texts), itc if name == "itc" else mean_recall, loss, smooth=True)


def _a_row_each(model: Model, batch: Batch) -> Tensor:
    """The loss of a batch, repeated for each sample [b], so that a smaller last batch counts less."""
    rows = next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim())
    return model.loss(batch).double().repeat(rows)


def _right(model: Classifier, batch: Batch) -> Tensor:
    return (model.logits(batch["image"]).argmax(dim=1) == batch["label"]).double()


def mean_recall(found: list[Tensor]) -> float:
    """Mean recall in percent, from features [n, e] of images and of their texts; ties are broken by position."""
    similarity = F.normalize(found[0], dim=1) @ F.normalize(found[1], dim=1).t()
    number = torch.arange(len(similarity), device=similarity.device)
    found_early = []
    for rows in (similarity, similarity.t()):
        own = rows.diagonal()[:, None]
        before = (rows > own) | ((rows == own) & (number < number[:, None]))
        place = before.sum(dim=1)
        found_early += [(place < k).double().mean() for k in RECALLS]
    return 100 * float(torch.stack(found_early).mean())
