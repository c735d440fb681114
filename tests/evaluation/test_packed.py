"""Packed files against the masked tensors they were written from, bit for bit, and against their size by hand."""

import json
import math
import struct

import numpy as np
import pytest
import torch

from evaluation.efficiency.sizes import write_packed
from storage.tensors import read_safetensors


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(7, 5, generator=generator),  # 35 bits: the last byte is not full
        "b.weight": torch.randn(4, 3, 2, 2, generator=generator),
        "gone.weight": torch.randn(3, 3, generator=generator),
        "a.bias": torch.randn(7, generator=generator),
        "places": torch.arange(3),
    }


@pytest.fixture
def kept(tensors):
    keep = {name: tensors[name].abs() > 0.7 for name in ("a.weight", "b.weight")}
    return keep | {"gone.weight": torch.zeros(3, 3, dtype=torch.bool)}


def read_packed(path):
    stored, metadata = read_safetensors(path)
    found = {name: tensor for name, tensor in stored.items() if not name.startswith(("bits/", "kept/"))}
    for name, shape in json.loads(metadata["shapes"]).items():
        keep = np.unpackbits(stored[f"bits/{name}"].numpy(), count=math.prod(shape)).astype(bool)
        found[name] = torch.zeros(len(keep), dtype=torch.float16)
        found[name][torch.from_numpy(keep)] = stored[f"kept/{name}"]
        found[name] = found[name].reshape(shape)
    return found


def test_round_trip(tensors, kept, tmp_path):
    write_packed(tmp_path / "packed", tensors, kept)
    found = read_packed(tmp_path / "packed")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        masked = tensor * kept[name] if name in kept else tensor
        expected = masked.half() if tensor.is_floating_point() else tensor
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected), name
    assert torch.equal(found["gone.weight"], torch.zeros(3, 3).half())


def test_bytes_by_hand(tensors, kept, tmp_path):
    """Behind the header: a bit for each of the pruned tensors' weights, two bytes for a number kept, int64 whole."""
    write_packed(tmp_path / "packed", tensors, kept)
    content = (tmp_path / "packed").read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    numbers = sum(int(keep.sum()) for keep in kept.values()) + 7
    assert len(content) - header == 5 + 6 + 2 + 2 * numbers + 3 * 8
