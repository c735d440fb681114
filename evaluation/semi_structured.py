"""Layers in torch's 2:4 format, which CUDA devices since Ampere multiply by without the zeros.

Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (two of every four inputs are kept).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from console.errors import InputError
from models.base import Model
from models.layers import layer_uses
from sparsity.mask import Mask

AMPERE = (8, 0)


def obstacle(device: torch.device, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
    """Why 2:4 multiplication cannot be had here, in words; None when it can. mask: None stands for one that is 2:4."""
    if mask is not None:
        try:
            mask.check_pattern(2, 4)
        except InputError as error:
            return f"the mask is not 2:4 ({error})"
    if device.type != "cuda":
        return f"it needs a CUDA device, and this is the {device.type}, where a 2:4 mask costs and saves nothing"
    capability = torch.cuda.get_device_capability(device)
    if capability < AMPERE:
        return f"it needs a CUDA device of capability 8.0 or more, and this one has {'.'.join(map(str, capability))}"
    if dtype not in (torch.float16, torch.bfloat16):
        return "it needs half precision: give --precision 16-true or bf16-true"
    return None


def compressed(weight: Tensor) -> Tensor | None:
    """weight [o, i], half precision on a CUDA device and 2:4 along i, in the format; None for shapes without one."""
    if weight.dim() != 2:
        return None
    try:
        return torch.sparse.to_sparse_semi_structured(weight)
    except RuntimeError as error:
        if "dimension" in str(error) or "shape" in str(error):  # each type has its least sides and their multiples
            return None
        raise


@torch.no_grad()
def compress_layers(model: Model) -> tuple[int, int]:
    """Put the prunable weights of a 2:4 model into the format, in place: how many went, of how many."""
    done, uses = 0, layer_uses(model)
    for modules in map(list, map(dict.values, uses.values())):
        linear = all(isinstance(module, nn.Linear) for module in modules)  # others multiply in ways of their own
        sparse = compressed(modules[0].weight.detach()) if linear else None
        if sparse is None:
            continue
        done += 1
        parameter = nn.Parameter(sparse, requires_grad=False)
        for module in modules:  # shared weights stay shared
            module.weight = parameter
    return done, len(uses)
