"""X-VLM for captioning: the vision tower, and all text and fusion layers as one causal language model.

Zeng, Zhang and Li, ICML 2022. One class serves both stages: the first one without prompt and smoothing.
    python captioning.py --model xvlm
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.cache_utils import EncoderDecoderCache

from models.base import Batch, ImageShape
from models.common.bert import Embeddings, Encoder, MLMHead
from models.common.building import reset_weights
from models.common.checkpoint import MASK_SUFFIX, KeyRules
from models.common.decoding import caption_labels, decoder_logits, for_texts, mean_token_loss, xvlm_smoothing
from models.common.gather import Gather, no_gather
from models.xvlm.clip_tower import CLIPTower
from models.xvlm.encoders import modality_by_layer, prunable_linears
from models.xvlm.model import XVLMConfig, official_name

UNUSED = ("temp", "vision_proj.", "text_proj.", "itm_head.", "bbox_head.")


def captioning_name(key: str, keys: set[str]) -> str | None:
    """Key of a pretraining or a captioning file -> name in the captioning model.

    The masks that a first stage's file contains are none of the model's tensors: `Mask.load` reads them.
    """
    if key == "text_decoder.cls.predictions.bias":  # a second name, as in the pretraining model
        decoder = "text_decoder.cls.predictions.decoder.bias"
        return None if decoder in keys else decoder
    name = official_name(key, keys)
    if name is None or name.startswith(UNUSED) or name.endswith(MASK_SUFFIX):
        return None
    return name.replace("text_encoder.", "text_decoder.", 1) if name.startswith("text_encoder.") else name


@dataclass(frozen=True)
class XVLMCaptioningConfig(XVLMConfig):
    """own_head: the word prediction has a table of its own, as the published finetuning leaves it, which unties it."""

    own_head: bool = False


class XVLMCaptioning(nn.Module):
    """Names are those of the published captioning model."""

    Config = XVLMCaptioningConfig
    stateful = False
    key_rules = KeyRules(captioning_name, positions=("vision_encoder.pos_embed.weight",))

    def __init__(self, config: XVLMCaptioningConfig):
        super().__init__()
        self.config = config
        self.vision_encoder = CLIPTower(config.vision)
        self.text_decoder = nn.Module()
        self.text_decoder.bert = nn.Module()
        self.text_decoder.bert.embeddings = Embeddings(config.text, token_types=True)
        self.text_decoder.bert.encoder = Encoder(config.text)
        self.text_decoder.cls = MLMHead(config.text)
        self.tie()

    def tie(self) -> None:
        """Make the word prediction use the word table (again, after parameters were replaced), if it is to."""
        if self.config.own_head:
            return
        words = self.text_decoder.bert.embeddings.word_embeddings
        self.text_decoder.cls.predictions.decoder.weight = words.weight

    @torch.no_grad()
    def reset(self) -> None:
        """Random weights (from torch's global generator)."""
        reset_weights(self)
        self.vision_encoder.class_embedding.normal_(std=0.02)

    @property
    def image_shape(self) -> ImageShape:
        """Side and patch of the images."""
        return ImageShape(self.config.vision.image_size, self.config.vision.patch_size)

    def forward(
        self, batch: Batch, gather: Gather = no_gather, prompt: int = 4, smoothing: float = 0.1
    ) -> dict[str, Tensor]:
        """Loss lm of captions: image [i, 3, H, W], text_ids, text_atts [b, t]; image_of [b] where images are shared.

        prompt: how many first positions are given and not learnt (with [CLS]); 0 in the first stage, and smoothing 0.
        """
        labels = caption_labels(batch["text_ids"], batch["text_atts"], prompt)
        states = for_texts(self.vision_encoder(batch["image"]), batch.get("image_of"))
        logits = self.caption_logits(batch["text_ids"], batch["text_atts"], states)
        return {"lm": mean_token_loss(logits, labels, smoothing, xvlm_smoothing)}

    def image_states(self, image: Tensor) -> Tensor:
        """image [b, 3, H, W] -> states [b, p, d] that captions are generated from."""
        return self.vision_encoder(image)

    def caption_start(self, ids: Tensor) -> Tensor:
        """Prompt ids [b, t] as tokenised -> as the decoder wants them: unchanged."""
        return ids

    def caption_logits(
        self, ids: Tensor, atts: Tensor, image: Tensor, past: EncoderDecoderCache | None = None
    ) -> Tensor:
        """Word logits [b, t, V] of ids [b, t] over image states [b, p, d]; past: see `decoder_logits`."""
        seen = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        return decoder_logits(self.text_decoder, ids, atts, image, seen, past)

    def prunable_layers(self) -> dict[str, nn.Linear]:
        """See `models.base.PrunableModel`."""
        return prunable_linears(self)

    def modality_of(self, name: str) -> str:
        """vision, text or fusion."""
        return modality_by_layer(name, self.config.text.fusion_layer)
