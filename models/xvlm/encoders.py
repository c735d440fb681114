"""What X-VLM's pretraining and retrieval models share: towers, fusion, the contrastive space, what is prunable.

Zeng, Zhang and Li, "Multi-Grained Vision Language Pre-Training", ICML 2022.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import ImageShape
from models.common.bert import cross_attention_mask, layer_states, self_attention_mask, without_padding

EXCLUDED = ("vision_proj", "text_proj", "itm_head", "bbox_head", ".cls.")
"""Parts that are never pruned, as substrings of parameter names."""


class XVLMEncoders(nn.Module):
    """A subclass builds `vision_encoder`, `vision_proj`, `text_proj`, `itm_head` and tells where `bert` is."""

    config: Any  # an XVLMConfig
    stateful = False

    @property
    def bert(self) -> nn.Module:
        """The module with the text `embeddings` and the `encoder` of text and fusion layers."""
        raise NotImplementedError

    @property
    def image_shape(self) -> ImageShape:
        """Side and patch of the images."""
        return ImageShape(self.config.vision.image_size, self.config.vision.patch_size)

    # -- states -----------------------------------------------------------------------------------------

    def text_states(self, ids: Tensor, atts: Tensor) -> Tensor:
        """Text layers: ids [b, t], atts [b, t] -> [b, t, d]."""
        x = self.bert.embeddings(ids)
        mask = self_attention_mask(atts, x.dtype)
        for layer in self.bert.encoder.layer[: self.config.text.fusion_layer]:
            x = layer(x, mask)
        return x

    def fusion_states(self, text: Tensor, text_atts: Tensor, image: Tensor, image_atts: Tensor) -> Tensor:
        """Fusion layers: text states [b, t, d] that look at image states [b, p, d] (atts [b, p]) -> [b, t, d].

        One image, [1, p, d] and [1, p], serves all texts.
        """
        mask = self_attention_mask(text_atts, text.dtype)
        image_mask = cross_attention_mask(image_atts, text.dtype)
        x = text
        for layer in self.bert.encoder.layer[self.config.text.fusion_layer :]:
            x = layer_states(layer, x, mask, image, image_mask)
        return x

    def image_features(self, states: Tensor) -> Tensor:
        """The CLS state of image states [b, p, d] in the contrastive space: [b, e], L2-normalised."""
        return F.normalize(self.vision_proj(states[:, 0]), dim=-1)

    def text_features(self, states: Tensor) -> Tensor:
        """The CLS state of text states [b, t, d] in the contrastive space: [b, e], L2-normalised."""
        return F.normalize(self.text_proj(states[:, 0]), dim=-1)

    # -- retrieval --------------------------------------------------------------------------------------

    def image_entry(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What a gallery keeps of images [b, 3, H, W]: states [b, p, d] and features [b, e]."""
        states = self.vision_encoder(image)
        return states, self.image_features(states)

    def text_entry(self, ids: Tensor, atts: Tensor) -> tuple[Tensor, Tensor]:
        """What a gallery keeps of texts [b, t]: states [b, t, d] and features [b, e]."""
        states = self.text_states(ids, atts)
        return states, self.text_features(states)

    def match(self, text: Tensor, text_atts: Tensor, image: Tensor, similarity: Tensor) -> Tensor:
        """How well pairs of states match: the ITM logit of "matches" [b]; X-VLM does not use the similarity.

        image: states [b, p, d], or [1, p, d] of one image for all texts.
        """
        text, text_atts = without_padding(text, text_atts)
        everywhere = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        return self.itm_head(self.fusion_states(text, text_atts, image, everywhere)[:, 0])[:, 1]

    # -- what pruners ask -------------------------------------------------------------------------------

    def prunable_layers(self) -> dict[str, nn.Linear]:
        """See `models.base.PrunableModel`."""
        return prunable_linears(self)

    def modality_of(self, name: str) -> str:
        """vision, text (layers without) or fusion (layers with cross-attention)."""
        return modality_by_layer(name, self.config.text.fusion_layer)


def prunable_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Parameter name -> linear layer, heads left out."""
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in EXCLUDED)
    }


def modality_by_layer(name: str, fusion_layer: int) -> str:
    """vision; text below `fusion_layer`, fusion from it on."""
    if name.startswith("vision_encoder."):
        return "vision"
    layer = int(name.split(".layer.")[1].split(".")[0])
    return "text" if layer < fusion_layer else "fusion"
