"""What is known of Hugging Face's classes: a record each, of its loss, its modalities and which layers read text.

Batches have the toolkit's own fields (image, text_ids, text_atts, label). A record is a class that is never made: its
attributes and static methods are what `models.library.hf_models` hands to the wrapper.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.registry import Registry
from models.base import Batch
from models.common.contrastive import matching_loss, pairs_loss

HALF = (0.5, 0.5, 0.5)


class HFClass:
    """The record of a class with two towers, and the defaults of all."""

    exclude: tuple[str, ...] = ()
    """Parts of names that are never pruned."""

    head: str = ""
    """The one of these that can be pruned on request: an image classifier's own layer."""

    text: tuple[str, ...] = ("text_model.",)
    """Prefixes of parameters whose layers read text tokens."""

    padded: bool = True
    """Whether padding is masked; SigLIP reads it like any other token."""

    normalised: tuple[float, ...] | None = None
    """Mean and deviation of images where no preprocessor says them; None: CLIP's."""

    apart: bool = False
    """Whether image and text have a feature each, which `image` and `text_features` give."""

    hottest: float | None = None
    """Largest logit_scale, a logarithm, of classes whose towers are apart; None: any."""

    @staticmethod
    def image(module: nn.Module, image: Tensor) -> Tensor:
        """Features [b, e] of images [b, 3, H, W], of classes whose towers are apart."""
        return module.get_image_features(pixel_values=image).pooler_output

    @classmethod
    def text_features(cls, module: nn.Module, ids: Tensor, atts: Tensor) -> Tensor:
        """Features [b, e] of texts [b, t], of the same."""
        seen = {"attention_mask": atts} if cls.padded else {}
        return module.get_text_features(input_ids=ids, **seen).pooler_output

    @staticmethod
    def contrast(module: nn.Module, similarity: Tensor, targets: Tensor) -> Tensor:
        """Loss of scaled similarities [b, b] of images and texts; targets: which belong together, rows sum to 1."""
        return pairs_loss(similarity, targets)

    @staticmethod
    def loss(module: nn.Module, batch: Batch) -> Tensor:
        """The scalar that pruners differentiate. Default: the module's own contrastive loss."""
        return module(**inputs(batch), return_loss=True).loss

    @staticmethod
    def forward(module: nn.Module, batch: Batch) -> Any:
        """A pass in which every layer is met."""
        return module(**inputs(batch))


def inputs(batch: Batch, *without: str) -> dict[str, Tensor]:
    """A batch under the names of transformers' arguments, those of `without` left out."""
    names = {"image": "pixel_values", "text_ids": "input_ids", "text_atts": "attention_mask"}
    return {new: batch[old] for old, new in names.items() if old in batch and new not in without}


class CLIP(HFClass):
    """Contrastive loss over a batch."""

    exclude = ("visual_projection", "text_projection")
    apart = True
    hottest = math.log(100)


class SigLIP(HFClass):
    """Sigmoid loss; its text tower was trained on padding, which no mask hides."""

    exclude = ("text_model.head",)
    padded = False
    apart = True
    normalised = HALF

    @staticmethod
    def contrast(module: nn.Module, similarity: Tensor, targets: Tensor) -> Tensor:
        """Each pair alone, whether it belongs together (Zhai et al., ICCV 2023)."""
        signs = 2 * (targets > 0).to(similarity.dtype) - 1
        return -F.logsigmoid(signs * (similarity + module.logit_bias)).sum(dim=1).mean()

    @staticmethod
    def loss(module: nn.Module, batch: Batch) -> Tensor:
        """The module's own."""
        return module(**inputs(batch, "attention_mask"), return_loss=True).loss

    @staticmethod
    def forward(module: nn.Module, batch: Batch) -> Any:
        """Both towers."""
        return module(**inputs(batch, "attention_mask"))


class BLIPRetrieval(HFClass):
    """ITC over the batch, and ITM with the neighbour's image as the wrong one (transformers offers no loss)."""

    exclude = ("vision_proj", "text_proj", "itm_head", "pooler")
    text = ("text_encoder.",)

    @staticmethod
    def loss(module: nn.Module, batch: Batch) -> Tensor:
        """The sum of both."""
        named = inputs(batch)
        similarity = module(**named, use_itm_head=False).itm_score / 0.07
        target = torch.arange(len(similarity), device=similarity.device)
        contrastive = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.t(), target)) / 2
        right = module(**named).itm_score
        wrong = module(**(named | {"pixel_values": named["pixel_values"].roll(1, dims=0)})).itm_score
        return contrastive + matching_loss(torch.cat([right, wrong]), pairs=len(right))


class ImageClassifier(HFClass):
    """Any `...ForImageClassification`: cross-entropy over its logits."""

    exclude = ("classifier", "pooler")
    head = "classifier"
    text = ()

    @staticmethod
    def logits(module: nn.Module, image: Tensor) -> Tensor:
        """Class logits [b, classes]."""
        return module(pixel_values=image).logits


class HalvedClassifier(ImageClassifier):
    """One whose images are normalised from -1 to 1."""

    normalised = HALF


HF_CLASSES: Registry[type[HFClass]] = Registry(
    "class",
    {
        "CLIPModel": "models.library.hf_classes:CLIP",
        "SiglipModel": "models.library.hf_classes:SigLIP",
        "BlipForImageTextRetrieval": "models.library.hf_classes:BLIPRetrieval",
        "ViTForImageClassification": "models.library.hf_classes:HalvedClassifier",
        "SiglipForImageClassification": "models.library.hf_classes:HalvedClassifier",
    },
)
"""Class name (the first of `architectures` in config.json) -> its record. A new one is a line here and a class."""

CLASSIFIER = "ForImageClassification"
"""Ending of the names of all classes that `ImageClassifier` describes, in HF_CLASSES or not."""


def record_of(name: str) -> type[HFClass] | None:
    """The record of a class; None where the toolkit has none."""
    return HF_CLASSES[name] if name in HF_CLASSES else ImageClassifier if name.endswith(CLASSIFIER) else None
