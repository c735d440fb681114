"""Models of libraries with two separate towers (CLIP, SigLIP): features for evaluation, and the finetuning loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Batch, Probe
from models.common.contrastive import same_image_targets
from models.common.gather import Gather, no_gather
from models.tasks import Retriever
from models.wrap import WrappedModel

if TYPE_CHECKING:
    from models.library.hf_classes import HFClass


class WrappedPairs(Retriever, WrappedModel):
    """A wrapped module of two independent towers: a feature per image, and one per text."""

    reranks = False

    def __init__(self, module: nn.Module, record: type[HFClass], **more: Any):
        """record: of the module's class, with two towers; more: as of `WrappedModel`."""
        super().__init__(module, **more)
        self._record = record

    @property
    def temp(self) -> Tensor:
        """The temperature of similarities."""
        return 1 / self.module.logit_scale.exp()

    @property
    def positions(self) -> int:
        """As the config of its text tower says."""
        return self.module.config.text_config.max_position_embeddings

    @property
    def towers(self) -> tuple[nn.Module, nn.Module]:
        """Of images and of texts, without their projections."""
        return self.module.vision_model, self.module.text_model

    def image_entry(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The feature [b, e] of images [b, 3, H, W], L2-normalised, for both: there is no re-ranking."""
        feature = F.normalize(self._record.image(self.module, image), dim=-1)
        return feature, feature

    def text_entry(self, ids: Tensor, atts: Tensor) -> tuple[Tensor, Tensor]:
        """That of texts [b, t]."""
        feature = F.normalize(self._record.text_features(self.module, ids, atts), dim=-1)
        return feature, feature

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """Loss itc of pairs: image [b, 3, H, W], text_ids, text_atts [b, t]; idx [b], the image, where some share one.

        gather: features and ids of all pairs that are compared, asked for image features, text features and ids in
        this order. A learnt temperature stays in its range.
        """
        if self.training:
            self.clamp_temperature()
        image = self.image_entry(batch["image"])[1]
        text = self.text_entry(batch["text_ids"], batch["text_atts"])[1]
        images, texts = gather(image), gather(text)
        # Captions of one image are right answers for one another; without ids each pair has an image of its own.
        idx = gather(batch["idx"]) if "idx" in batch else torch.arange(len(images), device=images.device)
        similarity = images @ texts.t() * self.module.logit_scale.exp()
        return {"itc": self._record.contrast(self.module, similarity, same_image_targets(idx))}

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the factor on similarities below the bound that the class was trained with."""
        if self._record.max_logit_scale is not None:
            self.module.logit_scale.clamp_(max=self._record.max_logit_scale)

    def probe(self, size: int) -> Probe:
        """An image and a text."""

        def run(model: WrappedPairs, batch: Batch) -> Tensor:
            image, text = (
                model.image_entry(batch["image"])[1],
                model.text_entry(batch["text_ids"], batch["text_atts"])[1],
            )
            return (image * text).sum(dim=1)

        return Probe("an image, a text, and how alike they are", self.example(size)[self.sides[0]], run)
