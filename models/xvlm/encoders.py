"""Base classes of X-VLM's models: prunable parts; for pretraining and retrieval fusion and the contrastive space.

Zeng, Zhang and Li, "Multi-Grained Vision Language Pre-Training", ICML 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from models.base import Batch, Model
from models.common.attention_masks import cross_attention_mask, self_attention_mask, without_padding
from models.common.bert import layer_states
from models.common.contrastive import contrastive_features, matching_loss
from models.library.hf_parts import hf_parts
from models.parts import Part
from models.tasks import Retriever


class XVLMModel(Model):
    """A `vision_encoder` and a text half whose layers from `config.text.fusion_layer` on look at the image."""

    config: Any  # an XVLMConfig
    excluded = ("vision_proj", "text_proj", "itm_head", "bbox_head", ".cls.")

    @torch.no_grad()
    def reset(self) -> None:
        """Random weights (from torch's global generator)."""
        super().reset()
        self.vision_encoder.class_embedding.normal_(std=0.02)

    def parts(self) -> Iterator[Part]:
        """Of the tower's and BERT's blocks, which are those of transformers."""
        return hf_parts(self)

    def layers_removed(self, path: str, kept: Sequence[int]) -> None:
        """Update the configurations, which count the layers with regions and those with cross-attention."""
        if path.startswith("vision_encoder."):
            vision = self.config.vision.only(kept)
            self.config, self.vision_encoder.config = replace(self.config, vision=vision), vision
        elif not (path.startswith("text_decoder.") and hasattr(self, "text_encoder")):  # VQA's decoder is no encoder
            self.config = replace(self.config, text=self.config.text.only(kept))

    def modality_of(self, name: str) -> str:
        """vision, text (layers without cross-attention) or fusion (layers with it)."""
        if name.startswith("vision_encoder."):
            return "vision"
        layer = int(name.split(".layer.")[1].split(".")[0])
        return "text" if layer < self.config.text.fusion_layer else "fusion"


class XVLMEncoders(XVLMModel, Retriever):
    """A subclass builds `vision_encoder`, `vision_proj`, `text_proj`, `itm_head`, `temp` and says where `bert` is."""

    @torch.no_grad()
    def reset(self) -> None:
        """Random weights and the initial temperature."""
        super().reset()
        self.temp.fill_(self.config.temp)

    @property
    def bert(self) -> nn.Module:
        """The module with the text `embeddings` and the `encoder` of text and fusion layers."""
        raise NotImplementedError

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

    def _matching_loss(
        self, text: Tensor, atts: Tensor, image: Tensor, image_atts: Tensor, wrong_image: Tensor, wrong_text: Tensor
    ) -> Tensor:
        """ITM loss of the pairs of a batch, and of each text and each image with a wrong partner.

        Arguments as of `fusion_states`; wrong_image, wrong_text [b] int64: those partners.
        """
        right = self.fusion_states(text, atts, image, image_atts)
        wrong = self.fusion_states(
            torch.cat([text, text[wrong_text]]),
            torch.cat([atts, atts[wrong_text]]),
            torch.cat([image[wrong_image], image]),
            torch.cat([image_atts[wrong_image], image_atts]),
        )
        return matching_loss(self.itm_head(torch.cat([right[:, 0], wrong[:, 0]])), pairs=len(text))

    # -- retrieval --------------------------------------------------------------------------------------

    def image_entry(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What a gallery keeps of images [b, 3, H, W]: states [b, p, d] and features [b, e]."""
        states = self.vision_encoder(image)
        return states, contrastive_features(states, self.vision_proj)

    def text_entry(self, ids: Tensor, atts: Tensor) -> tuple[Tensor, Tensor]:
        """What a gallery keeps of texts [b, t]: states [b, t, d] and features [b, e]."""
        states = self.text_states(ids, atts)
        return states, contrastive_features(states, self.text_proj)

    def match(self, text: Tensor, text_atts: Tensor, image: Tensor, similarity: Tensor) -> Tensor:
        """How well pairs of states match: the ITM logit of "matches" [b]; X-VLM does not use the similarity.

        image: states [b, p, d], or [1, p, d] of one image for all texts.
        """
        text, text_atts = without_padding(text, text_atts)
        everywhere = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        return self.itm_head(self.fusion_states(text, text_atts, image, everywhere)[:, 0])[:, 1]

    def real_tokens(self, name: str, batch: Batch) -> Tensor | None:
        """Text tokens as the attention mask says; image tokens (tower, cross-attention keys and values) all."""
        reads_image = name.startswith("vision_encoder.") or ".crossattention.self.key." in name
        if reads_image or ".crossattention.self.value." in name:
            return None
        return batch["text_atts"]
