"""Models of libraries with two towers apart (CLIP, SigLIP): what they are compared by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Batch, Probe
from models.tasks import Retriever
from models.wrap import WrappedModel


class WrappedPairs(Retriever, WrappedModel):
    """A wrapped module of two towers, neither of which sees the other: a feature for an image, and one for a text."""

    def __init__(
        self,
        module: nn.Module,
        image: Callable[[nn.Module, Tensor], Tensor],
        text: Callable[[nn.Module, Tensor, Tensor], Tensor],
        scale: Callable[[nn.Module], Tensor],
        **more: Any,
    ):
        """image(module, image [b, 3, H, W]), text(module, ids, atts [b, t]) -> features [b, e]; scale(module): what
        similarities are multiplied with; more: as of `WrappedModel`.
        """
        super().__init__(module, **more)
        self._image, self._text, self._scale = image, text, scale

    @property
    def temp(self) -> Tensor:
        """The temperature of similarities."""
        return 1 / self._scale(self.module)

    def image_entry(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The feature [b, e] of images [b, 3, H, W], L2-normalised, for both: there is no re-ranking."""
        feature = F.normalize(self._image(self.module, image), dim=-1)
        return feature, feature

    def text_entry(self, ids: Tensor, atts: Tensor) -> tuple[Tensor, Tensor]:
        """That of texts [b, t]."""
        feature = F.normalize(self._text(self.module, ids, atts), dim=-1)
        return feature, feature

    def match(self, text: Tensor, text_atts: Tensor, image: Tensor, similarity: Tensor) -> Tensor:
        """Similarity alone."""
        return similarity

    def probe(self, size: int) -> Probe:
        """An image and a text."""

        def run(model: WrappedPairs, batch: Batch) -> Tensor:
            image, text = (
                model.image_entry(batch["image"])[1],
                model.text_entry(batch["text_ids"], batch["text_atts"])[1],
            )
            return (image * text).sum(dim=1)

        return Probe("an image, a text, and how alike they are", self.example(size)[self.sides[0]], run)
