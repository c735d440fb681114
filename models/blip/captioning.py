"""BLIP for captioning: the vision tower and the text decoder.

Li et al., ICML 2022.
    python captioning.py --model blip
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from models.base import Batch
from models.blip.decoder import BLIPDecoderModel, decoder_name, with_decoder
from models.blip.med import TextDecoder, starting
from models.blip.model import BLIPConfig
from models.common.building import reset_weights
from models.common.checkpoint import KeyRules
from models.common.decoding import caption_labels, decoder_logits, for_texts, mean_token_loss
from models.common.gather import Gather, no_gather
from models.common.vit import vision_transformer


def captioning_name(key: str, keys: set[str]) -> str | None:
    """Key of a pretraining or a captioning file -> name in the captioning model."""
    name = decoder_name(key, keys)
    return None if name is None or name.startswith("text_encoder.") else name


class BLIPCaptioning(BLIPDecoderModel):
    """Names are those of the published captioning model."""

    Config = BLIPConfig
    key_rules = KeyRules(captioning_name, positions=("visual_encoder.pos_embed",), prepare=with_decoder)

    def __init__(self, config: BLIPConfig):
        super().__init__()
        self.config = config
        self.visual_encoder = vision_transformer(config.vision)
        self.text_decoder = TextDecoder(config.text)
        self.tie()

    @torch.no_grad()
    def reset(self) -> None:
        """Random weights (from torch's global generator)."""
        reset_weights(self)
        self.visual_encoder.cls_token.normal_(std=0.02)
        self.visual_encoder.pos_embed.normal_(std=0.02)

    def forward(
        self, batch: Batch, gather: Gather = no_gather, prompt: int = 4, smoothing: float = 0.1
    ) -> dict[str, Tensor]:
        """Loss lm of captions: image [i, 3, H, W], text_ids, text_atts [b, t]; image_of [b] where images are shared.

        prompt: how many first positions are given and not learnt, the start mark among them.
        """
        ids = self.caption_start(batch["text_ids"])
        labels = caption_labels(ids, batch["text_atts"], prompt)
        states = for_texts(self.visual_encoder(batch["image"]), batch.get("image_of"))
        logits = self.caption_logits(ids, batch["text_atts"], states)
        return {"lm": mean_token_loss(logits, labels, smoothing)}

    def image_states(self, image: Tensor) -> Tensor:
        """image [b, 3, H, W] -> states [b, p, d] that captions are generated from."""
        return self.visual_encoder(image)

    def caption_start(self, ids: Tensor) -> Tensor:
        """Ids [b, t] as tokenised -> as the decoder wants them: [DEC] first."""
        return starting(ids, self.dec)

    def caption_logits(
        self, ids: Tensor, atts: Tensor, image: Tensor, past: EncoderDecoderCache | None = None
    ) -> Tensor:
        """Word logits [b, t, V] of ids [b, t] over image states [b, p, d]; past: see `decoder_logits`."""
        seen = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        return decoder_logits(self.text_decoder, ids, atts, image, seen, past)
