"""Pruned weights as small as a plain format makes them: one bit a weight, and the half-precision values kept.

A `.safetensors` file: `bits/NAME` (uint8, eight weights a byte) and `kept/NAME` (float16) for each pruned tensor;
every other tensor under its own name, floating point as float16.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from console.errors import InputError
from console.words import counted
from storage.tensors import parse_metadata, read_safetensors, write_safetensors

FORMAT = "vlm-pruning-packed-1"
BITS, KEPT = "bits/", "kept/"  # before the name of a tensor


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, those of floating point as float16."""
    return {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def write_packed(path: Path | str, tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Write tensors to `path` atomically.

    kept: name -> boolean tensor of the same shape, True where the value is stored; False reads back as zero. Tensors
    without one are stored whole.
    """
    stored: dict[str, Tensor] = {}
    shapes = {}
    for name, tensor in halved(tensors).items():
        if name not in kept:
            stored[name] = tensor
            continue
        keep = kept[name]
        assert keep.shape == tensor.shape, name
        shapes[name] = list(tensor.shape)
        stored[f"{BITS}{name}"] = torch.from_numpy(np.packbits(keep.numpy()))
        stored[f"{KEPT}{name}"] = tensor.cpu()[keep]
    write_safetensors(path, stored, {"format": FORMAT, "shapes": json.dumps(shapes)})


def read_packed(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a packed file, zeros where they were pruned; InputError when it is missing or damaged."""
    stored, metadata = read_safetensors(path)
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} is no packed file: give one that storage.packed wrote")
    tensors = {name: tensor for name, tensor in stored.items() if not name.startswith((BITS, KEPT))}
    for name, shape in parse_metadata(path, metadata, "shapes").items():
        bits, values = stored.get(f"{BITS}{name}"), stored.get(f"{KEPT}{name}")
        size = math.prod(shape)
        if bits is None or values is None or bits.numel() != (size + 7) // 8:
            raise InputError(f"{path} is damaged: the bits or values of '{name}' are missing or of the wrong length")
        keep = torch.from_numpy(np.unpackbits(bits.numpy(), count=size).view(np.bool_))
        if int(keep.sum()) != len(values):
            raise InputError(
                f"{path} is damaged: '{name}' has {counted(len(values), 'value')} for "
                f"{counted(int(keep.sum()), 'place')}"
            )
        tensors[name] = torch.zeros(size, dtype=values.dtype).masked_scatter_(keep, values).reshape(shape)
    return tensors
