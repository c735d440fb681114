"""BLIP-base: ViT, text encoder, image-grounded encoder and decoder that share tensors, momentum and queues.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training", ICML 2022; pruned by MULTIFLOW (CVPR 2024).
    python prune.py --model blip --pruner multiflow
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.registry import Registry
from models.base import Batch
from models.blip.encoders import FRESH, BLIPEncoders
from models.blip.med import TextDecoder, share, starting
from models.common import examples
from models.common.bert import (
    TextConfig,
    causal_mask,
    cross_attention_mask,
    first_token_looks,
    self_attention_mask,
    without_padding,
)
from models.common.checkpoint import KeyRules
from models.common.contrastive import TEMP_RANGE, hard_negatives, matching_loss, similarity_weights
from models.common.gather import Gather, no_gather
from models.common.vit import ViTConfig


@dataclass(frozen=True)
class BLIPConfig:
    """Sizes of a BLIP. The last two words of the vocabulary are [DEC] and [ENC]. queue: columns of each queue."""

    vision: ViTConfig
    text: TextConfig
    embed_dim: int
    queue: int
    temp: float


def official_name(key: str, keys: set[str]) -> str | None:
    """Key of an official checkpoint -> name in the model, or None for what the model does not need."""
    if key.endswith(".position_ids"):
        return None
    if key == "text_decoder.cls.predictions.bias":  # upstream's second name of the decoder's bias
        decoder = "text_decoder.cls.predictions.decoder.bias"
        return None if decoder in keys else decoder
    return key


class BLIP(BLIPEncoders):
    """BLIP with all pretraining parts. State dict names are those of the official checkpoint."""

    Config = BLIPConfig
    sides = ("general", "region")
    tasks: ClassVar[Registry[type[nn.Module]]] = Registry(
        "task of BLIP",
        {
            "retrieval": "models.blip.retrieval:BLIPRetrieval",
            "captioning": "models.blip.captioning:BLIPCaptioning",
            "vqa": "models.blip.vqa:BLIPVQA",
        },
    )
    first_use_only = True  # as published: what encoder and decoder share is observed in the encoder, where it is named
    key_rules = KeyRules(
        official_name,
        positions=("visual_encoder.pos_embed", "visual_encoder_m.pos_embed"),
        skip_resized=("image_queue", "text_queue"),
        fresh=lambda name: name.split(".")[0] in FRESH,  # exported minis leave out what can be made anew
    )

    def __init__(self, config: BLIPConfig):
        super().__init__()
        self._build_encoders(config)
        self.text_decoder = TextDecoder(config.text)
        self.temp = nn.Parameter(torch.empty(()))
        self._build_queues(config)
        self.tie()

    def tie(self) -> None:
        """Share encoder and decoder tensors (again, after parameters were replaced)."""
        share(self.text_encoder, self.text_decoder.bert)
        self.text_decoder.cls.predictions.decoder.weight = self.text_encoder.embeddings.word_embeddings.weight

    # -- states -----------------------------------------------------------------------------------------

    @property
    def dec(self) -> int:
        """Id of [DEC], which starts what the decoder reads."""
        return self.config.text.vocab_size - 2

    def decoder_logits(self, ids: Tensor, atts: Tensor, image: Tensor) -> Tensor:
        """Word logits [b, t, V] of the causal decoder over image states; the first id becomes [DEC]."""
        states = self.text_decoder.bert(starting(ids, self.dec), causal_mask(atts, image.dtype), image)
        return self.text_decoder.cls(states)

    # -- pretraining ------------------------------------------------------------------------------------

    def forward(self, batch: Batch, gather: Gather = no_gather, alpha: float = 0.0) -> dict[str, Tensor]:
        """Losses ita, itm and lm of a batch of pairs.

        alpha: weight of the momentum model's soft targets (0 in pruning). gather: features of all processes for the
        queues, during training.
        """
        temp = self.temp.clamp(*TEMP_RANGE)
        ids, atts = without_padding(batch["text_ids"], batch["text_atts"])
        image, text = self.visual_encoder(batch["image"]), self.text_states(ids, atts)
        image_feature, text_feature = self.image_features(image), self.text_features(text)
        with torch.no_grad():
            image_m, text_m = self.momentum_features(batch)
            images = torch.cat([image_m.t(), self.image_queue], dim=1)
            texts = torch.cat([text_m.t(), self.text_queue], dim=1)
            targets = torch.zeros(len(ids), images.shape[1], device=images.device).fill_diagonal_(1)
            soft_i2t = alpha * (image_m @ texts / temp).softmax(dim=1) + (1 - alpha) * targets
            soft_t2i = alpha * (text_m @ images / temp).softmax(dim=1) + (1 - alpha) * targets
        i2t, t2i = image_feature @ texts / temp, text_feature @ images / temp
        losses = {"ita": (F.cross_entropy(i2t, soft_i2t) + F.cross_entropy(t2i, soft_t2i)) / 2}
        self._enqueue(gather(image_m), gather(text_m))
        losses["itm"] = self._itm_loss(ids, atts, image, i2t.detach(), t2i.detach())
        logits = self.decoder_logits(ids, atts, image)[:, :-1]
        labels = starting(ids, self.dec)[:, 1:].masked_fill(atts[:, 1:] == 0, -100)
        losses["lm"] = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=0.1)
        return losses

    losses = forward

    def loss(self, batch: Batch) -> Tensor:
        """ITA + ITM + LM with hard targets, as pruners differentiate it."""
        return torch.stack(list(self.losses(batch).values())).sum()

    @torch.no_grad()
    def pass_by(self, batch: Batch) -> None:
        """What another process's batch does to this model's state: one momentum step, one place in the queues."""
        self._enqueue(*self.momentum_features(batch))

    def _itm_loss(self, ids: Tensor, atts: Tensor, image: Tensor, i2t: Tensor, t2i: Tensor) -> Tensor:
        b = len(ids)
        wrong_image = hard_negatives(similarity_weights(t2i[:, :b], 1e-4))
        wrong_text = hard_negatives(similarity_weights(i2t[:, :b], 1e-4))
        right = self.grounded_states(ids, atts, image)
        wrong = self.grounded_states(
            torch.cat([ids, ids[wrong_text]]),
            torch.cat([atts, atts[wrong_text]]),
            torch.cat([image[wrong_image], image]),
        )
        return matching_loss(self.itm_head(torch.cat([right[:, 0], wrong[:, 0]])), pairs=b)

    def match_logits(self, ids: Tensor, atts: Tensor, image: Tensor) -> Tensor:
        """Whether texts match images: [b, 2], the second for a match. ids, atts [b, t]; image states [b, p, d]."""
        return self.itm_head(self.grounded_states(ids, atts, image)[:, 0])

    # -- towers alone (first stages of pretraining) -----------------------------------------------------

    @property
    def vision_width(self) -> int:
        """Width d of the image states."""
        return self.config.vision.width

    def vision_tower(self) -> nn.Module:
        """The module from pixels [b, 3, H, W] to states of all image tokens [b, p, d]."""
        return self.visual_encoder

    def text_parameters(self) -> Iterator[nn.Parameter]:
        """What `masked_words` trains: the encoder without cross-attention, and the word prediction."""
        for name, parameter in self.text_encoder.named_parameters():
            if "crossattention" not in name:
                yield parameter
        yield from self.text_decoder.cls.parameters()

    def masked_words(self, batch: Batch) -> Tensor:
        """Masked language modelling without images. Scalar."""
        states = self.text_states(batch["text_ids_masked"], batch["text_atts"])
        at = batch["masked_pos"][:, :, None].expand(-1, -1, states.shape[-1])
        logits = self.text_decoder.cls(states.gather(1, at))
        return F.cross_entropy(logits.flatten(0, 1).float(), batch["masked_ids"].flatten())

    def grounding(self, ids: Tensor, atts: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """What [ENC] knows in the end, [b, d], and where it looks in the second layer, [b, h, p].

        In the first layer it has not read the text yet when it looks. ids, atts [b, t]; image states [b, p, d].
        """
        encoder, mask = self.text_encoder, self_attention_mask(atts, image.dtype)
        seen = cross_attention_mask(torch.ones(image.shape[:2], dtype=torch.long, device=image.device), image.dtype)
        states = encoder.embeddings(starting(ids, self.enc))
        for number, layer in enumerate(encoder.encoder.layer):
            if number == 1:
                looks = first_token_looks(layer, self.config.text.heads, states, mask, image)
            states = layer(states, mask, image, seen)
        return states[:, 0], looks

    @torch.no_grad()
    def tower_trained(self, tower: str) -> None:
        """After a stage of a tower (`vision` or `text`) alone: its copies start from it, as in BLIP from ViT and BERT.

        Momentum copies equal the originals again, and the decoder's self-attention the encoder's.
        """
        name = "visual_encoder" if tower == "vision" else "text_encoder"
        getattr(self, f"{name}_m").load_state_dict(getattr(self, name).state_dict())
        if tower == "text":
            layers = zip(self.text_encoder.encoder.layer, self.text_decoder.bert.encoder.layer, strict=True)
            for encoder, decoder in layers:
                decoder.attention.load_state_dict(encoder.attention.state_dict())

    # -- what pruners ask -------------------------------------------------------------------------------

    def observe(self, batch: Batch) -> None:
        """Tower, image-grounded encoder, decoder. Shared tensors are met in the encoder, where they are named."""
        image = self.visual_encoder(batch["image"])
        self.grounded_states(batch["text_ids"], batch["text_atts"], image)
        self.decoder_logits(batch["text_ids"], batch["text_atts"], image)

    def real_tokens(self, name: str, batch: Batch) -> Tensor | None:
        """Text tokens as the attention mask says; image tokens (tower, cross-attention keys and values) all."""
        if name.startswith("visual_encoder.") or ".crossattention.self.key." in name:
            return None
        return None if ".crossattention.self.value." in name else batch["text_atts"]

    def example(self, size: int) -> dict[str, Batch]:
        """Noise images and random words."""
        text, side = self.config.text, self.config.vision.image_size
        length = min(30, text.positions)
        return {
            name: examples.images(size, side) | examples.texts(size, length, text.vocab_size - 2) for name in self.sides
        }
