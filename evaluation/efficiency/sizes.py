"""The file size of a model: plain, zipped, and packed as bits and kept values. Files are written and measured."""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparsity.mask import Mask
from storage.tensors import write_safetensors

CHUNK = 1 << 20


def count_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Number of weights among them, buffers left out."""
    return sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, nn.Parameter))


def file_sizes(tensors: Mapping[str, Tensor], mask: Mask | None = None) -> dict[str, int]:
    """Bytes of the files `fp32` and `fp16` (safetensors), of the latter `zipped`, and with a mask `packed`.

    tensors: of the masked model.
    """
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        write_safetensors(path, _of(tensors, torch.float32), {})
        sizes["fp32"] = path.stat().st_size
        path.unlink()  # a large model's two files might not fit on the disk
        write_safetensors(path, _of(tensors, torch.float16), {})
        sizes["fp16"], sizes["zipped"] = path.stat().st_size, zipped_size(path)
        path.unlink()
        if mask is not None:
            write_packed(path, tensors, mask)
            sizes["packed"] = path.stat().st_size
    return sizes


def write_packed(path: Path, tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Write tensors in a compact format: one bit per weight, and the kept values in half precision.

    kept: name -> boolean tensor of the same shape, True where the value is stored. In the file, `bits/NAME` (uint8,
    eight weights a byte) and `kept/NAME` (float16) stand for such a tensor; every other one is under its own name.
    """
    stored = _of(tensors, torch.float16)
    for name in [name for name in stored if name in kept]:
        tensor = stored.pop(name)
        assert kept[name].shape == tensor.shape, name
        stored[f"bits/{name}"] = torch.from_numpy(np.packbits(kept[name].numpy()))
        stored[f"kept/{name}"] = tensor.cpu()[kept[name]]
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items() if name in kept}
    write_safetensors(path, stored, {"format": "vlm-pruning-packed-1", "shapes": json.dumps(shapes)})


def _of(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def zipped_size(path: Path) -> int:
    """Bytes of a file after deflate at its default level, as in zip and gzip."""
    pack, size = zlib.compressobj(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            size += len(pack.compress(chunk))
    return size + len(pack.flush())
