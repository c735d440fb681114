"""Any timm model as a thing to prune: `--model timm:vit_small_patch16_224`, calibrated on labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from console.errors import InputError, nearest
from models.base import Batch, ImageShape
from models.checkpoint import KeyRules, LoadReport, load_state, read_state
from models.wrap import WrappedModel, wrap

KEY_RULES = KeyRules(
    rename=lambda key, keys: key.removeprefix("module."),  # of files written under DistributedDataParallel
    positions=("pos_embed",),
    state_keys=("state_dict_ema", "model_ema", "state_dict", "model"),
)


def load_timm(name: str, weights: str | Path | None, settings: dict[str, Any], seed: int = 0) -> WrappedModel:
    """A timm classifier, wrapped; fused qkv matrices stay fused, the classifier is not pruned.

    weights: a file, "random" (drawn from `seed`), or None for timm's own pretrained weights (from its cache or the
    network). settings: keyword arguments of timm.create_model, for example {"img_size": 64, "num_classes": 10}.
    """
    if not timm.is_model(name):
        raise InputError(f"timm has no model '{name}'{nearest(name, timm.list_models())}")
    pretrained = weights is None
    checkpoint = None if pretrained or str(weights) == "random" else Path(weights)
    if checkpoint is not None and not checkpoint.is_file():
        raise InputError(f"no weights for 'timm:{name}': the file {checkpoint} does not exist")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = timm.create_model(name, pretrained=pretrained, **settings)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        mend = "give a file with --weights, or --weights random" if pretrained else "check the settings"
        raise InputError(f"timm cannot build '{name}' ({reason}): {mend}") from error
    model = wrap_timm(module, settings.get("img_size"))
    if checkpoint is not None:
        model.load_report = load_state(module, read_state(checkpoint, KEY_RULES), KEY_RULES, str(checkpoint))
    elif pretrained:
        about = module.pretrained_cfg
        source = f"timm's weights {about.get('hf_hub_id') or about.get('url') or name}"
        model.load_report = LoadReport(source, loaded=len(module.state_dict()))
    return model


def wrap_timm(module: nn.Module, side: int | None = None) -> WrappedModel:
    """A model made by timm.create_model, wrapped. side: of its images, where it was made for another than usual."""
    about = module.pretrained_cfg or {}
    heads = about.get("classifier") or ()
    classes = module.num_classes
    for part in module.modules():
        if hasattr(part, "qkv_bias_separate"):
            part.qkv_bias_separate = True  # BEiT, EVA, Swin v2 else use the layer's weight without calling the layer
    patches = getattr(module, "patch_embed", None)
    side = _first(getattr(patches, "img_size", None) or side or (about.get("input_size") or (224,))[-1])
    patch = _first(getattr(patches, "patch_size", None) or 1)

    def example(size: int) -> Batch:
        return {"image": torch.randn(size, 3, side, side), "label": torch.randint(0, max(1, classes), (size,))}

    return wrap(
        module,
        loss=classification_loss if classes else no_loss,
        forward=lambda module, batch: module(batch["image"]),
        modality=lambda name: "vision",
        exclude=(heads,) if isinstance(heads, str) else heads,
        image_shape=ImageShape(side, patch, tuple(about.get("mean", ())) or None, tuple(about.get("std", ())) or None),
        example=example,
    )


def classification_loss(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of image [b, 3, H, W] and label [b]; InputError for labels beyond the model's classes."""
    logits = module(batch["image"])
    if int(batch["label"].max()) >= logits.shape[1]:
        raise InputError(
            f"the data has a class {int(batch['label'].max())}, but the model knows {logits.shape[1]}: "
            "choose the data set the classifier was trained on"
        )
    return F.cross_entropy(logits.float(), batch["label"])


def no_loss(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Of a model without a classifier: InputError."""
    raise InputError(
        f"this {type(module).__name__} has no classifier, so there is no loss to differentiate: choose a pruner "
        "without gradients (multiflow, wanda, lamp, ...) or weights with a classifier"
    )


def _first(size: int | tuple[int, ...]) -> int:
    return size if isinstance(size, int) else size[0]
