"""X-VLM (ViT variant): CLIP vision tower, BERT text layers, BERT fusion layers, and its pretraining losses.

Zeng, Zhang and Li, "Multi-Grained Vision Language Pre-Training", ICML 2022; pruned by MULTIFLOW (CVPR 2024).
    python prune.py --model xvlm --pruner multiflow
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
from models.common import examples
from models.common.bert import Embeddings, Encoder, MLMHead, TextConfig, first_token_looks, self_attention_mask
from models.common.building import reset_weights
from models.common.checkpoint import KeyRules
from models.common.contrastive import TEMP_RANGE, hard_negatives, itc_loss, matching_loss, similarity_weights
from models.common.gather import Gather, no_gather
from models.xvlm.boxes import box_losses, guidance_loss, patch_box_loss
from models.xvlm.clip_tower import CLIPTower, VisionConfig
from models.xvlm.encoders import XVLMEncoders


@dataclass(frozen=True)
class XVLMConfig:
    """Sizes of an X-VLM. embed_dim: width of the contrastive space; temp: its initial temperature."""

    vision: VisionConfig
    text: TextConfig
    embed_dim: int
    temp: float


def mlp_head(width: int, outputs: int) -> nn.Sequential:
    """X-VLM's ITM and box head: width -> 2 width -> outputs."""
    return nn.Sequential(
        nn.Linear(width, 2 * width),
        nn.LayerNorm(2 * width, eps=1e-5),
        nn.GELU(),
        nn.Linear(2 * width, outputs),
    )


def official_name(key: str, keys: set[str]) -> str | None:
    """Key of an official checkpoint -> name in the model, or None for what models never need.

    Position id buffers hold 0, 1, 2, ...; upstream stores the word prediction's bias under a second name.
    """
    if key.endswith(".position_ids"):
        return None
    if key == "text_encoder.cls.predictions.bias":
        decoder = "text_encoder.cls.predictions.decoder.bias"
        return None if decoder in keys else decoder
    return key


class XVLM(XVLMEncoders):
    """X-VLM with all pretraining heads. State dict names are those of the official checkpoint."""

    Config = XVLMConfig
    sides = ("general", "region")
    tasks: ClassVar[Registry[type[nn.Module]]] = Registry(
        "task of X-VLM",
        {
            "retrieval": "models.xvlm.retrieval:XVLMRetrieval",
            "captioning": "models.xvlm.captioning:XVLMCaptioning",
            "captioning_pretrain": "models.xvlm.captioning:XVLMCaptioning",
            "vqa": "models.xvlm.vqa:XVLMVQA",
        },
    )
    key_rules = KeyRules(official_name, positions=("vision_encoder.pos_embed.weight",))

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

    @torch.no_grad()
    def reset(self) -> None:
        """Random weights (from torch's global generator) and the initial temperature."""
        reset_weights(self)
        self.vision_encoder.class_embedding.normal_(std=0.02)
        self.temp.fill_(self.config.temp)

    @property
    def bert(self) -> nn.Module:
        """Text and fusion layers."""
        return self.text_encoder.bert

    def image_states(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Image or region states [b, p, d], their mask [b, p], and for region batches the full-image states."""
        if "idx_to_group_img" not in batch:
            image = self.vision_encoder(batch["image"])
            return image, torch.ones(image.shape[:2], dtype=torch.long, device=image.device), None
        region, full = self.vision_encoder.regions(batch["image"], batch["idx_to_group_img"], batch["image_atts"])
        return region, batch["image_atts"], full

    # -- pretraining ------------------------------------------------------------------------------------

    def forward(self, batch: Batch, gather: Gather = no_gather, guide: nn.Module | None = None) -> dict[str, Tensor]:
        """All pretraining losses of a general or a region batch: itc, itm, mlm (and bbox, giou with regions).

        gather: collects contrastive features of all processes during training; pruning uses one batch alone.
        guide: a head d -> 4 that asks, with regions, for two more losses which are no part of X-VLM: `glance`, whether
        half of the heads of the first fusion layer look at the region, and `patches`, whether each patch of the region
        tells its box.
        """
        temp = self.temp.clamp(*TEMP_RANGE)
        image, image_atts, full = self.image_states(batch)
        atts = batch["text_atts"]
        text = self.text_states(batch["text_ids"], atts)
        image_feature, text_feature = self.image_features(image), self.text_features(text)
        losses = {"itc": itc_loss(gather(image_feature), gather(text_feature), temp)}
        losses["itm"] = self._itm_loss(image, image_atts, text, atts, image_feature @ text_feature.t() / temp)
        losses["mlm"] = self._mlm_loss(batch, image, image_atts)
        if full is not None:
            losses |= box_losses(self.predict_boxes(text, atts, full), batch["target_bbox"], batch["is_image"])
            if guide is not None:
                looked = self.glance(text, atts, full)
                losses["glance"] = guidance_loss(looked[:, : looked.shape[1] // 2], batch["image_atts"])
                losses["patches"] = patch_box_loss(guide(full).sigmoid(), batch["target_bbox"], batch["image_atts"])
        return losses

    losses = forward

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

    def glance(self, text: Tensor, text_atts: Tensor, image: Tensor) -> Tensor:
        """Where the CLS of text states [b, t, d] looks first in image states [b, p, d]: attention [b, h, p]."""
        layer = self.bert.encoder.layer[self.config.text.fusion_layer]
        return first_token_looks(layer, self.config.text.heads, text, self_attention_mask(text_atts, text.dtype), image)

    def _itm_loss(self, image: Tensor, image_atts: Tensor, text: Tensor, atts: Tensor, similarity: Tensor) -> Tensor:
        b = text.shape[0]
        wrong_image = hard_negatives(similarity_weights(similarity.detach().t(), 1e-5))
        wrong_text = hard_negatives(similarity_weights(similarity.detach(), 1e-5))
        right = self.fusion_states(text, atts, image, image_atts)
        wrong = self.fusion_states(
            torch.cat([text, text[wrong_text]]),
            torch.cat([atts, atts[wrong_text]]),
            torch.cat([image[wrong_image], image]),
            torch.cat([image_atts[wrong_image], image_atts]),
        )
        return matching_loss(self.itm_head(torch.cat([right[:, 0], wrong[:, 0]])), pairs=b)

    def _mlm_loss(self, batch: Batch, image: Tensor, image_atts: Tensor) -> Tensor:
        text = self.text_states(batch["text_ids_masked"], batch["text_atts"])
        return self._word_loss(batch, self.fusion_states(text, batch["text_atts"], image, image_atts))

    def _word_loss(self, batch: Batch, states: Tensor) -> Tensor:
        """Cross-entropy of the hidden words, read from states [b, t, d] at their positions."""
        at = batch["masked_pos"][:, :, None].expand(-1, -1, states.shape[-1])
        logits = self.text_encoder.cls(states.gather(1, at))
        return F.cross_entropy(logits.flatten(0, 1).float(), batch["masked_ids"].flatten())

    # -- towers alone (first stages of pretraining) -----------------------------------------------------

    @property
    def vision_width(self) -> int:
        """Width d of the image states."""
        return self.config.vision.width

    def vision_tower(self) -> nn.Module:
        """The module from pixels [b, 3, H, W] to states of all image tokens [b, p, d]."""
        return self.vision_encoder

    def text_parameters(self) -> Iterator[nn.Parameter]:
        """What `masked_words` trains: the text side without cross-attention."""
        for name, parameter in self.text_encoder.named_parameters():
            if "crossattention" not in name:
                yield parameter

    def masked_words(self, batch: Batch) -> Tensor:
        """Masked language modelling without images: all layers, cross-attention skipped. Scalar."""
        x = self.text_states(batch["text_ids_masked"], batch["text_atts"])
        mask = self_attention_mask(batch["text_atts"], x.dtype)
        for layer in self.bert.encoder.layer[self.config.text.fusion_layer :]:
            x = layer(x, mask)
        return self._word_loss(batch, x)

    # -- what pruners ask -------------------------------------------------------------------------------

    def observe(self, batch: Batch) -> None:
        """Tower, text layers on the unmasked ids, fusion layers; heads and negatives are not used."""
        image, image_atts, _ = self.image_states(batch)
        text = self.text_states(batch["text_ids"], batch["text_atts"])
        self.fusion_states(text, batch["text_atts"], image, image_atts)

    def real_tokens(self, name: str, batch: Batch) -> Tensor | None:
        """Text tokens as the attention mask says; image tokens (tower, cross-attention keys and values) all."""
        reads_image = name.startswith("vision_encoder.") or ".crossattention.self.key." in name
        if reads_image or ".crossattention.self.value." in name:
            return None
        return batch["text_atts"]

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

    def moving_tensors(self) -> Iterator[Tensor]:
        """None: the losses change nothing."""
        return iter(())
