"""Hugging Face models as things to prune: `--model hf:<id or local folder>`.

Batches have the toolkit's own fields (image, text_ids, text_atts, label); each family below says what its loss is
of them, which modality a parameter belongs to, and which layers read text.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.image_processing_base import ImageProcessingMixin

from console.errors import InputError, nearest
from console.words import agreed, counted
from models import is_path
from models.base import Batch, ImageShape
from models.common.checkpoint import KeyRules, LoadReport, read_state, unwrap
from models.common.contrastive import matching_loss
from models.library.hf_tokenizer import HFTokenizer
from models.library.hub import hub_or_cache
from models.library.timm_models import classification_loss
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


def load_hf(reference: str, weights: str | Path | None, settings: dict[str, Any], seed: int = 0) -> WrappedModel:
    """A Hugging Face model, wrapped, from a hub id or a folder with config.json and weights.

    weights: None for those of the reference, another id, a checkpoint (file, folder, index or shard), or "random" for
    fresh ones drawn from `seed`. settings: values that replace the config's. Raises InputError when it cannot be had,
    when its class is not one of FAMILIES, and when the weights do not fit it.
    """
    if _is_here(reference) and not Path(reference).is_dir():
        raise InputError(f"hf:{reference}: there is no such folder; give one with config.json and weights")
    given = [reference] if weights is None or str(weights) == "random" else [reference, str(weights)]
    with contextlib.nullcontext() if all(map(_is_here, given)) else hub_or_cache():
        return _load(reference, weights, settings, seed)


def _is_here(reference: str) -> bool:
    """Whether this names something on this machine, not at the hub; like transformers, what is here goes first."""
    return is_path(reference) or Path(reference).exists()


def _load(reference: str, weights: str | Path | None, settings: dict[str, Any], seed: int) -> WrappedModel:
    try:
        config, unknown = transformers.AutoConfig.from_pretrained(reference, **settings, return_unused_kwargs=True)
    except (OSError, ValueError, KeyError) as error:
        raise _not_there(reference, error) from error
    for key in unknown:
        raise InputError(f"hf:{reference}: its config has no '{key}'{nearest(key, config.to_dict())}")
    name = (config.architectures or ["model of no class"])[0]
    if name not in FAMILIES:
        raise InputError(
            f"hf:{reference} is a {name}, but the toolkit knows {', '.join(FAMILIES)}: "
            "wrap it yourself with a few lambdas (docs/add-a-model.md)"
        )
    if str(weights) == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module, report = getattr(transformers, name)(config), None
    else:
        module, report = _pretrained(getattr(transformers, name), str(weights or reference), config)
    longest = config.text_config.max_position_embeddings if FAMILIES[name].text else 0
    tokenizer = HFTokenizer.load(reference, longest) if FAMILIES[name].text else None
    model = wrap_hf(module.eval(), tokenizer, _preprocessor(reference))
    model.load_report = report
    return model


def _pretrained(model_class: type, source: str, config: Any) -> tuple[nn.Module, LoadReport]:
    """A model with the weights of a folder or id, and what happened to their keys; InputError when they do not fit."""
    report, state, place = LoadReport(source), None, source
    if _is_here(source):
        state, report = read_state(source, KeyRules())
        with torch.device("meta"):
            wanted = model_class(config).state_dict()
        state, place = unwrap(state, KeyRules(), wanted, report), None
        report.files = []  # identified by the tensors that transformers makes of them, as those of the hub
    try:
        module, info = model_class.from_pretrained(
            place, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    except pickle.UnpicklingError as error:
        raise InputError(
            f"the weights of {source} are corrupt or hold Python objects besides tensors, which could run code: "
            "give them as safetensors"
        ) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _not_there(source, error) from error
    fresh = sorted(info["missing_keys"])
    heads = FAMILIES[model_class.__name__].exclude
    lacking = [name for name in fresh if not any(head in name for head in heads)]
    total = len(module.state_dict())
    if lacking:  # transformers would fill them at random and say so among other lines
        raise InputError(
            f"the weights of {source} do not fit {model_class.__name__}: {len(lacking)} of its "
            f"{counted(total, 'tensor')} {agreed(len(lacking), 'is')} missing (first: {lacking[0]}); give weights of "
            "this model"
        )
    report.loaded, report.fresh = total - len(fresh), fresh
    report.dropped += sorted(info["unexpected_keys"])
    return module, report


def wrap_hf(
    module: nn.Module, tokenizer: HFTokenizer | None = None, preprocessor: Mapping[str, Any] | None = None
) -> WrappedModel:
    """A model of one of FAMILIES as a prunable one. preprocessor: its preprocessor_config.json, where it has one."""
    family = FAMILIES[type(module).__name__]
    config = module.config
    vision = getattr(config, "vision_config", config)
    shape = ImageShape(vision.image_size, vision.patch_size, *image_statistics(config, preprocessor or {}))

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
        exclude=tuple(part for part in family.exclude if any(part in name for name, _ in module.named_modules())),
        tokens=tokens,
        image_shape=shape,
        tokenizer=tokenizer,
        example=example,
    )


def image_statistics(config: Any, preprocessor: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, ...]:
    """Mean and deviation that images are normalised with: the preprocessor's, else the family's.

    SigLIP and ViT: 0.5; CLIP's otherwise (None).
    """
    if "image_mean" in preprocessor and "image_std" in preprocessor:
        return tuple(preprocessor["image_mean"]), tuple(preprocessor["image_std"])
    half = (0.5, 0.5, 0.5)
    return (half, half) if config.model_type in ("siglip", "vit") else (None, None)


def _preprocessor(reference: str) -> dict[str, Any]:
    """The reference's preprocessor_config.json; empty where it has none."""
    try:
        return ImageProcessingMixin.get_image_processor_dict(reference)[0]
    except OSError:
        return {}


def _not_there(reference: str, error: Exception) -> InputError:
    reason = str(error).strip().splitlines()[0][:150]
    return InputError(
        f"hf:{reference} cannot be loaded ({reason}): give a local folder with config.json and weights, "
        "or an id that the hub or its cache has"
    )
