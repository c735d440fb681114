"""Hugging Face models as things to prune: `--model hf:<id or local folder>`.

Batches have the toolkit's own fields (image, text_ids, text_atts, label); each family below says what its loss is
of them, which modality a parameter belongs to, and which layers read text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from console.errors import InputError
from models.base import Batch, ImageShape
from models.contrastive import matching_loss
from models.hf_tokenizer import HFTokenizer
from models.timm_models import classification_loss
from models.wrap import WrappedModel, wrap


@dataclass(frozen=True)
class Family:
    """How models of one class are pruned. text: prefixes of parameters whose layers read text tokens."""

    loss: Callable[[nn.Module, Batch], Tensor]
    forward: Callable[[nn.Module, Batch], Any]
    exclude: tuple[str, ...]
    text: tuple[str, ...] = ()
    padded: bool = True  # whether padding is masked; SigLIP reads it like any other token


def _inputs(batch: Batch, mask: bool = True) -> dict[str, Tensor]:
    names = {"image": "pixel_values", "text_ids": "input_ids"} | ({"text_atts": "attention_mask"} if mask else {})
    return {new: batch[old] for old, new in names.items() if old in batch}


def _dual_loss(module: nn.Module, batch: Batch) -> Tensor:
    return module(**_inputs(batch), return_loss=True).loss


def _siglip_loss(module: nn.Module, batch: Batch) -> Tensor:
    return module(**_inputs(batch, mask=False), return_loss=True).loss


def _matching_loss(module: nn.Module, batch: Batch) -> Tensor:
    """ITC over the batch and ITM with the neighbour's image as the wrong one (transformers offers no loss)."""
    inputs = _inputs(batch)
    similarity = module(**inputs, use_itm_head=False).itm_score / 0.07
    target = torch.arange(len(similarity), device=similarity.device)
    contrastive = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.t(), target)) / 2
    right = module(**inputs).itm_score
    wrong = module(**(inputs | {"pixel_values": inputs["pixel_values"].roll(1, dims=0)})).itm_score
    return contrastive + matching_loss(torch.cat([right, wrong]), pairs=len(right))


FAMILIES = {
    "CLIPModel": Family(
        _dual_loss,
        lambda module, batch: module(**_inputs(batch)),
        exclude=("visual_projection", "text_projection"),
        text=("text_model.",),
    ),
    "SiglipModel": Family(
        _siglip_loss,
        lambda module, batch: module(**_inputs(batch, mask=False)),
        exclude=("text_model.head",),
        text=("text_model.",),
        padded=False,
    ),
    "BlipForImageTextRetrieval": Family(
        _matching_loss,
        lambda module, batch: module(**_inputs(batch)),
        exclude=("vision_proj", "text_proj", "itm_head", "pooler"),
        text=("text_encoder.",),
    ),
    "ViTForImageClassification": Family(
        lambda module, batch: classification_loss(lambda image: module(pixel_values=image).logits, batch),
        lambda module, batch: module(pixel_values=batch["image"]),
        exclude=("classifier", "pooler"),
    ),
}
"""Class name (the first of `architectures` in config.json) -> family."""


def load_hf(reference: str, weights: str | Path | None, settings: dict[str, object]) -> WrappedModel:
    """A Hugging Face model, wrapped, from a hub id or a folder with config.json and weights.

    weights: None for those of the reference, "random" for fresh ones. settings: values that replace the config's.
    Raises InputError when it cannot be had or its class is not one of FAMILIES.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(reference, **settings)
    except (OSError, ValueError, KeyError) as error:
        raise _not_there(reference, error) from error
    name = (config.architectures or ["none"])[0]
    if name not in FAMILIES:
        raise InputError(
            f"hf:{reference} is a {name}, but the toolkit knows {', '.join(FAMILIES)}: "
            "wrap it yourself with a few lambdas (docs/add-a-model.md)"
        )
    model_class = getattr(transformers, name)
    try:
        if str(weights) == "random":
            module = model_class(config)
        else:
            module = model_class.from_pretrained(str(weights or reference), config=config, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_there(reference, error) from error
    return wrap_hf(module.eval(), HFTokenizer.load(reference) if FAMILIES[name].text else None)


def wrap_hf(module: nn.Module, tokenizer: HFTokenizer | None = None) -> WrappedModel:
    """A model of one of FAMILIES as a prunable one."""
    family = FAMILIES[type(module).__name__]
    config = module.config
    vision = getattr(config, "vision_config", config)
    shape = ImageShape(vision.image_size, vision.patch_size, *image_statistics(config))

    def tokens(name: str, batch: Batch) -> Tensor | None:
        reads_image = ".crossattention." in name and (".key." in name or ".value." in name)
        if not family.padded or reads_image or not name.startswith(family.text):
            return None
        return batch["text_atts"]

    def example(size: int) -> Batch:
        image = torch.randn(size, 3, shape.image_size, shape.image_size)
        if not family.text:
            return {"image": image, "label": torch.randint(0, config.num_labels, (size,))}
        t = min(12, config.text_config.max_position_embeddings)
        length = torch.randint(3, t, (size, 1)) if family.padded else torch.full((size, 1), t)
        atts = (torch.arange(t) < length).long()
        ids = torch.randint(3, config.text_config.vocab_size - 3, (size, t)) * atts
        end = getattr(config.text_config, "eos_token_id", None)
        if end is not None and end < config.text_config.vocab_size:
            ids.scatter_(1, length - 1, end)  # CLIP reads its text feature at the end mark
        return {"image": image, "text_ids": ids, "text_atts": atts}

    return wrap(
        module,
        loss=family.loss,
        forward=family.forward,
        modality=lambda name: "text" if name.startswith(family.text) and family.text else "vision",
        exclude=family.exclude,
        tokens=tokens,
        image_shape=shape,
        tokenizer=tokenizer,
        example=example,
    )


def image_statistics(config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that the family's images are normalised with (SigLIP and ViT: 0.5; CLIP's otherwise)."""
    half = (0.5, 0.5, 0.5)
    return (half, half) if config.model_type in ("siglip", "vit") else (None, None)


def _not_there(reference: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0][:150]
    return InputError(
        f"hf:{reference} cannot be loaded ({reason}): give a local folder with config.json and weights, "
        "or an id that the hub or its cache has"
    )
