"""Any timm model as a thing to prune: `--model timm:vit_small_patch16_224`, calibrated on labelled images."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

from console.errors import InputError, nearest
from models.base import Batch, ImageShape
from models.checkpoint import LoadReport
from models.wrap import WrappedModel, wrap


def load_timm(name: str, weights: str | Path | None, settings: dict[str, object]) -> WrappedModel:
    """A timm classifier, wrapped; fused qkv matrices stay fused, the classifier is not pruned.

    weights: a file, "random", or None for timm's own pretrained weights (from its cache or the network).
    settings: keyword arguments of timm.create_model, for example {"img_size": 64, "num_classes": 10}.
    """
    if not timm.is_model(name):
        raise InputError(f"timm has no model '{name}'{nearest(name, timm.list_models())}")
    pretrained = weights is None
    checkpoint = "" if weights is None or str(weights) == "random" else str(weights)
    if checkpoint and not Path(checkpoint).is_file():
        raise InputError(f"no weights for 'timm:{name}': the file {checkpoint} does not exist")
    try:
        module = timm.create_model(name, pretrained=pretrained, checkpoint_path=checkpoint, **settings)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:150]
        mend = "give a file with --weights, or --weights random" if pretrained else "check the file and the settings"
        raise InputError(f"timm cannot build '{name}' ({reason}): {mend}") from error
    about = module.pretrained_cfg or {}
    heads = about.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    side = (
        module.patch_embed.img_size[0] if hasattr(module, "patch_embed") else (about.get("input_size") or (3, 224))[1]
    )
    patch = module.patch_embed.patch_size[0] if hasattr(module, "patch_embed") else 1
    shape = ImageShape(side, patch, tuple(about.get("mean", ())) or None, tuple(about.get("std", ())) or None)
    classes = module.num_classes

    def example(size: int) -> Batch:
        return {"image": torch.randn(size, 3, side, side), "label": torch.randint(0, max(1, classes), (size,))}

    model = wrap(
        module,
        loss=classification_loss,
        forward=lambda module, batch: module(batch["image"]),
        modality=lambda name: "vision",
        exclude=tuple(f"{head}" for head in heads),
        image_shape=shape,
        example=example,
    )
    if checkpoint:
        model.load_report = LoadReport(checkpoint, loaded=len(module.state_dict()))
    return model


def classification_loss(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of image [b, 3, H, W] and label [b]; InputError for labels beyond the model's classes."""
    logits = module(batch["image"])
    if int(batch["label"].max()) >= logits.shape[1]:
        raise InputError(
            f"the data has a class {int(batch['label'].max())}, but the model knows {logits.shape[1]}: "
            "choose the data set the classifier was trained on"
        )
    return F.cross_entropy(logits.float(), batch["label"])
