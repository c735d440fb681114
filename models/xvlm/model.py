"""X-VLM (ViT variant): CLIP vision tower, BERT text layers, BERT fusion layers, and its pretraining losses.

Zeng, Zhang and Li, "Multi-Grained Vision Language Pre-Training", ICML 2022; pruned by MULTIFLOW (CVPR 2024).
    python prune.py --model xvlm --pruner multiflow
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from configs.registry import Registry
from models.base import Batch, Model
from models.common import examples
from models.common.bert import Embeddings, Encoder, MLMHead, TextConfig, hidden_words_loss, plain_name
from models.common.checkpoint import KeyRules
from models.common.contrastive import TEMP_RANGE, contrastive_features, hard_negatives, itc_loss, similarity_weights
from models.common.gather import Gather, no_gather
from models.tasks import ImageEncoder, Locator
from models.xvlm.boxes import box_losses
from models.xvlm.clip_tower import CLIPTower, VisionConfig
from models.xvlm.encoders import XVLMEncoders


@dataclass(frozen=True)
class XVLMConfig:
    """Sizes of an X-VLM."""

    vision: VisionConfig  # the image encoder
    text: TextConfig  # the text encoder and what is above it
    embed_dim: int  # width of the contrastive space
    temp: float  # initial temperature


def mlp_head(width: int, outputs: int) -> nn.Sequential:
    """X-VLM's ITM and box head: width -> 2 width -> outputs."""
    return nn.Sequential(
        nn.Linear(width, 2 * width),
        nn.LayerNorm(2 * width, eps=1e-5),
        nn.GELU(),
        nn.Linear(2 * width, outputs),
    )


class States(NamedTuple):
    """image [b, p, d] of images, or of the regions in them, and its mask image_atts [b, p]; full [b, p, d]: of the
    images that the regions lie in (None without regions); text [b, t, d] of the text layers.
    """

    image: Tensor
    image_atts: Tensor
    full: Tensor | None
    text: Tensor


class XVLM(XVLMEncoders, ImageEncoder, Locator):
    """X-VLM with all pretraining heads. State dict names are those of the official checkpoint."""

    Config = XVLMConfig
    sides = ("general", "region")
    tasks: ClassVar[Registry[type[Model]]] = Registry(
        "task of X-VLM",
        {
            "retrieval": "models.xvlm.retrieval:XVLMRetrieval",
            "captioning": "models.xvlm.captioning:XVLMCaptioning",
            "captioning_pretrain": "models.xvlm.captioning:XVLMCaptioning",
            "vqa": "models.xvlm.vqa:XVLMVQA",
        },
    )
    key_rules = KeyRules(plain_name, positions=("vision_encoder.pos_embed.weight",))

    def __init__(self, config: XVLMConfig):
        super().__init__()
        text, d = config.text, config.text.width
        self.config = config
        self.vision_encoder = CLIPTower(config.vision)
        self.text_encoder = nn.Module()
        self.text_encoder.bert = nn.Module()
        self.text_encoder.bert.embeddings = Embeddings(text, token_types=True)
        self.text_encoder.bert.encoder = Encoder(text)
        self.text_encoder.cls = MLMHead(text)
        self.vision_proj = nn.Linear(config.vision.width, config.embed_dim)
        self.text_proj = nn.Linear(d, config.embed_dim)
        self.itm_head = mlp_head(d, 2)
        self.bbox_head = mlp_head(d, 4)
        self.temp = nn.Parameter(torch.empty(()))
        self.tie()

    def tie(self) -> None:
        """Make the word prediction use the word table (again, after parameters were replaced)."""
        self.text_encoder.cls.predictions.decoder.weight = self.text_encoder.bert.embeddings.word_embeddings.weight

    @property
    def bert(self) -> nn.Module:
        """Text and fusion layers."""
        return self.text_encoder.bert

    def states(self, batch: Batch) -> States:
        """What towers and text layers make of a general or a region batch."""
        full = None
        if "idx_to_group_img" in batch:
            seen = batch["image_atts"]
            image, full = self.vision_encoder.regions(batch["image"], batch["idx_to_group_img"], seen)
        else:
            image = self.vision_encoder(batch["image"])
            seen = torch.ones(image.shape[:2], dtype=torch.long, device=image.device)
        return States(image, seen, full, self.text_states(batch["text_ids"], batch["text_atts"]))

    # -- pretraining ------------------------------------------------------------------------------------

    def forward(self, batch: Batch, gather: Gather = no_gather) -> dict[str, Tensor]:
        """All pretraining losses of a general or a region batch: itc, itm, mlm (and bbox, giou with regions).

        gather: collects contrastive features of all processes during training; pruning uses one batch alone.
        """
        return self.losses_of(batch, self.states(batch), gather)

    def losses_of(self, batch: Batch, states: States, gather: Gather = no_gather) -> dict[str, Tensor]:
        """The losses of a batch from its states."""
        temp, atts = self.temp.clamp(*TEMP_RANGE), batch["text_atts"]
        image, image_atts, full, text = states
        image_feature = contrastive_features(image, self.vision_proj)
        text_feature = contrastive_features(text, self.text_proj)
        losses = {"itc": itc_loss(gather(image_feature), gather(text_feature), temp)}
        losses["itm"] = self._itm_loss(image, image_atts, text, atts, image_feature @ text_feature.t() / temp)
        losses["mlm"] = self._mlm_loss(batch, image, image_atts)
        if full is not None:
            losses |= box_losses(self.predict_boxes(text, atts, full), batch["target_bbox"], batch["is_image"])
        return losses

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the learnt temperature in its range, between optimizer steps."""
        self.temp.clamp_(*TEMP_RANGE)

    def loss(self, batch: Batch) -> Tensor:
        """ITC + ITM + MLM, as pruners differentiate it: the box losses are not part of it."""
        losses = self.losses(batch)
        return losses["itc"] + losses["itm"] + losses["mlm"]

    def predict_boxes(self, text: Tensor, text_atts: Tensor, full: Tensor) -> Tensor:
        """Where in the full image [b, p, d] is what the text says? [b, 4] as (cx, cy, w, h) in [0, 1]."""
        everywhere = torch.ones(full.shape[:2], dtype=torch.long, device=full.device)
        return self.bbox_head(self.fusion_states(text, text_atts, full, everywhere)[:, 0]).sigmoid()

    def boxes(self, batch: Batch) -> Tensor:
        """Where in its image is what each text of a region batch says? [n, 4] as (cx, cy, w, h) in [0, 1]."""
        states = self.states(batch)
        return self.predict_boxes(states.text, batch["text_atts"], states.full)

    def _itm_loss(self, image: Tensor, image_atts: Tensor, text: Tensor, atts: Tensor, similarity: Tensor) -> Tensor:
        wrong_image = hard_negatives(similarity_weights(similarity.detach().t(), 1e-5))
        wrong_text = hard_negatives(similarity_weights(similarity.detach(), 1e-5))
        return self._matching_loss(text, atts, image, image_atts, wrong_image, wrong_text)

    def _mlm_loss(self, batch: Batch, image: Tensor, image_atts: Tensor) -> Tensor:
        """Cross-entropy of the hidden words, read from fusion states at their positions."""
        text = self.text_states(batch["text_ids_masked"], batch["text_atts"])
        states = self.fusion_states(text, batch["text_atts"], image, image_atts)
        return hidden_words_loss(batch, states, self.text_encoder.cls)

    def vision_tower(self) -> nn.Module:
        """The module from pixels [b, 3, H, W] to states of all image tokens [b, p, d]."""
        return self.vision_encoder

    # -- what pruners ask -------------------------------------------------------------------------------

    def observe(self, batch: Batch) -> None:
        """Tower, text layers on the unmasked ids, fusion layers; heads and negatives are not used."""
        image, image_atts, _, text = self.states(batch)
        self.fusion_states(text, batch["text_atts"], image, image_atts)

    def example(self, size: int) -> dict[str, Batch]:
        """Noise images, random words; the regions lie in half as many images."""
        text, side = self.config.text, self.config.vision.image_size
        length = min(40, text.positions)

        def words() -> Batch:
            batch = examples.texts(size, length, text.vocab_size)
            return batch | examples.masked(batch)

        groups = max(1, size // 2)
        return {
            "general": examples.images(size, side) | words(),
            "region": examples.images(groups, side)
            | words()
            | examples.regions(size, groups, self.config.vision.tokens),
        }
