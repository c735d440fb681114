"""Mask files in the published format of MULTIFLOW, and masks inside files of weights.

A mask file is a dict of `<module>.weight_pruning_mask` and `<module>.bias_pruning_mask` for all linear layers,
including those that are never pruned (all ones); boolean or float. Only entries of prunable layers matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from console.errors import InputError
from models.base import Model
from models.common.checkpoint import MASK_SUFFIX as SUFFIX
from models.common.nesting import inner_state
from storage.tensors import read_tensors, write_torch


def read_published(path: Path | str) -> dict[str, Tensor]:
    """Parameter name -> boolean mask of every weight in the file, which may hold the weights, too.

    Raises InputError when the file is no such dict.
    """
    content = read_tensors(path)
    if zeros := zeros_of_run(content):
        return zeros
    content, _ = inner_state(content)
    if not _has_masks(content):
        raise InputError(f"{path} is not a mask file: it has no key ending in '.weight{SUFFIX}'")
    return masks_among(content, path)


def zeros_of_run(content: Any) -> dict[str, Tensor]:
    """Masks from the zeros of a file that the published program of PLATON with intrinsic dimensions saves.

    It writes no masks: `epoch_<e>globalstep_<t>.pth` has the pruned weights under `model_state_dict`. {} for others.
    """
    if not isinstance(content, dict) or not {"epoch", "model_state_dict", "lr_schedule"} <= content.keys():
        return {}
    weights = content["model_state_dict"]
    return {name: tensor != 0 for name, tensor in weights.items() if name.endswith("weight") and tensor.dim() > 1}


def contains_mask(path: Path | str) -> bool:
    """Whether a file of weights contains its mask."""
    content = read_tensors(path)
    return bool(zeros_of_run(content)) or _has_masks(inner_state(content)[0])


def _has_masks(content: Any) -> bool:
    return isinstance(content, dict) and any(str(key).endswith(f"weight{SUFFIX}") for key in content)


def masks_among(content: Mapping[str, Any], path: Path | str) -> dict[str, Tensor]:
    """Parameter name -> boolean mask, of the tensors that are masks of weights; {} where none is.

    Float entries other than 0 and 1 (TAMT's files hold such for heads that are not pruned) are left out. Raises
    InputError when a mask is no tensor.
    """
    masks = {}
    for key, tensor in content.items():
        if not str(key).endswith(f"weight{SUFFIX}"):  # of attention's in_proj_weight, too
            continue
        if not isinstance(tensor, Tensor):
            raise InputError(f"{path} is not a mask file: '{key}' is no tensor")
        if tensor.dtype == torch.bool or bool(((tensor == 0) | (tensor == 1)).all()):
            masks[key.removesuffix(SUFFIX)] = tensor.bool()
    return masks


def write_published(path: Path | str, masks: Mapping[str, Tensor], model: Model) -> None:
    """Write a mask that fits `model`: booleans for all its linear layers, each tied one under its first name."""
    content: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in model.inner.named_modules():
        if not isinstance(module, nn.Linear) or id(module.weight) in seen:
            continue
        seen.add(id(module.weight))
        weight = masks.get(f"{name}.weight")
        content[f"{name}.weight{SUFFIX}"] = (
            torch.ones_like(module.weight, dtype=torch.bool) if weight is None else weight
        )
        if module.bias is not None:
            content[f"{name}.bias{SUFFIX}"] = torch.ones_like(module.bias, dtype=torch.bool)
    content |= {f"{name}{SUFFIX}": mask for name, mask in masks.items()}  # also those that belong to no nn.Linear
    write_torch(path, {key: tensor.cpu() for key, tensor in content.items()})
