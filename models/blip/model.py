"""BLIP-base: ViT, text encoder, image-grounded encoder and decoder that share tensors, momentum and queues.

Li et al., "BLIP: Bootstrapping Language-Image Pre-training", ICML 2022; pruned by MULTIFLOW (CVPR 2024).
    python prune.py --model blip --pruner multiflow
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.limits import at_least
from configs.registry import Registry
from models.base import Batch, Model
from models.blip.encoders import FRESH, BLIPEncoders
from models.blip.med import TextDecoder, share, starting
from models.common import examples
from models.common.attention_masks import causal_mask, without_padding
from models.common.bert import TextConfig, plain_name
from models.common.checkpoint import KeyRules
from models.common.contrastive import TEMP_RANGE, contrastive_features, hard_negatives, similarity_weights
from models.common.gather import Gather, no_gather
from models.common.vit import ViTConfig
from models.tasks import ImageEncoder


@dataclass(frozen=True)
class BLIPTextConfig(TextConfig):
    """Sizes of BLIP's text stack."""

    merge_from: int | None = None  # NLVR2: first layer that merges two images instead of averaging; None: layers / 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 0, "merge_from")

    @property
    def first_merge(self) -> int:
        """`merge_from`, or what it is by default."""
        return self.layers // 2 if self.merge_from is None else self.merge_from


@dataclass(frozen=True)
class BLIPConfig:
    """Sizes of a BLIP. The last two words of the vocabulary are [DEC] and [ENC]."""

    vision: ViTConfig  # the image encoder
    text: BLIPTextConfig  # the text encoder and what is above it
    embed_dim: int  # width of the contrastive space
    queue: int  # features in each queue
    temp: float  # initial temperature


class BLIP(BLIPEncoders, ImageEncoder):
    """BLIP with all pretraining parts. State dict names are those of the official checkpoint."""

    Config = BLIPConfig
    sides = ("general", "region")
    tasks: ClassVar[Registry[type[Model]]] = Registry(
        "task of BLIP",
        {
            "retrieval": "models.blip.retrieval:BLIPRetrieval",
            "captioning": "models.blip.captioning:BLIPCaptioning",
            "vqa": "models.blip.vqa:BLIPVQA",
            "nlvr": "models.blip.nlvr:BLIPNLVR",
        },
    )
    first_use_only = True  # as published: what encoder and decoder share is observed in the encoder, where it is named
    key_rules = KeyRules(
        plain_name,
        positions=("visual_encoder.pos_embed", "visual_encoder_m.pos_embed"),
        skip_resized=("image_queue", "text_queue"),
        fresh=lambda name: name.split(".")[0] in FRESH,  # exported minis leave out tensors that can be recreated
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
        image_feature = contrastive_features(image, self.vision_proj)
        text_feature = contrastive_features(text, self.text_proj)
        with torch.no_grad():
            image_m, text_m = self.momentum_features(batch)
            own = torch.zeros(len(ids), len(ids) + self.config.queue, device=image_m.device).fill_diagonal_(1)
            images, texts, soft_i2t, soft_t2i = self._soft_targets(image_m, text_m, own, temp, alpha)
        i2t, t2i = image_feature @ texts / temp, text_feature @ images / temp
        losses = {"ita": (F.cross_entropy(i2t, soft_i2t) + F.cross_entropy(t2i, soft_t2i)) / 2}
        self._enqueue(gather(image_m), gather(text_m))
        losses["itm"] = self._itm_loss(ids, atts, image, i2t.detach(), t2i.detach())
        logits = self.decoder_logits(ids, atts, image)[:, :-1]
        labels = starting(ids, self.dec)[:, 1:].masked_fill(atts[:, 1:] == 0, -100)
        losses["lm"] = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), label_smoothing=0.1)
        return losses

    @torch.no_grad()
    def pass_by(self, batch: Batch) -> None:
        """What another process's batch does to this model's state: one momentum step, one place in the queues."""
        self._enqueue(*self.momentum_features(batch))

    def _itm_loss(self, ids: Tensor, atts: Tensor, image: Tensor, i2t: Tensor, t2i: Tensor) -> Tensor:
        b = len(ids)
        wrong_image = hard_negatives(similarity_weights(t2i[:, :b], 1e-4))
        wrong_text = hard_negatives(similarity_weights(i2t[:, :b], 1e-4))
        return self._matching_loss(ids, atts, image, wrong_image, wrong_text)

    def vision_tower(self) -> nn.Module:
        """The module from pixels [b, 3, H, W] to states of all image tokens [b, p, d]."""
        return self.visual_encoder

    # -- what pruners ask -------------------------------------------------------------------------------

    def observe(self, batch: Batch) -> None:
        """Tower, image-grounded encoder, decoder. Shared tensors are met in the encoder, where they are named."""
        image = self.visual_encoder(batch["image"])
        self.grounded_states(batch["text_ids"], batch["text_atts"], image)
        self.decoder_logits(batch["text_ids"], batch["text_atts"], image)

    def example(self, size: int) -> dict[str, Batch]:
        """Noise images and random words."""
        text, side = self.config.text, self.config.vision.image_size
        length = min(30, text.positions)
        return {
            name: examples.images(size, side) | examples.texts(size, length, text.vocab_size - 2) for name in self.sides
        }
