"""Fingerprints against hashlib and against canonical JSON written by hand."""

import hashlib
import os
import struct

import pytest
import torch

from console.errors import InputError
from storage.hashing import hash_file, hash_json, hash_tensors


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_001])
def test_a_file_hashes_as_its_bytes(size, tmp_path):
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    assert hash_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_known_hash(tmp_path):
    """The test vector of FIPS 180-2."""
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(str(tmp_path / "a")) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*nothing: no such file"):
        hash_file(tmp_path / "nothing")
    with pytest.raises(InputError, match="cannot read"):
        hash_file(tmp_path)


def test_json_hash_is_that_of_the_sorted_text():
    expected = hashlib.sha256(b'{"a":[1,2.5,null],"b":{"x":"y","z":true}}').hexdigest()
    assert hash_json({"b": {"z": True, "x": "y"}, "a": [1, 2.5, None]}) == expected
    assert hash_json({"a": [1, 2.5, None], "b": {"x": "y", "z": True}}) == expected


def test_other_values_have_other_hashes():
    values = [{}, [], None, 0, "", "0", False, {"a": 1}, {"a": "1"}, {"a": [1]}, {"a": 1, "b": None}, [1, 2], [2, 1]]
    assert len({hash_json(value) for value in values}) == len(values)


def test_tensors_hash_by_name_type_shape_and_values():
    weights = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(True)}
    found = hash_tensors(weights)
    digest = hashlib.sha256(b"a torch.bool ()" + b"\x01" + b"b torch.float32 (2, 3)" + struct.pack("<6f", *range(6)))
    assert found == digest.hexdigest()
    turned = weights["b"].t().contiguous().t()  # the same values, in another order in memory
    assert not turned.is_contiguous()
    assert found == hash_tensors({"a": weights["a"], "b": turned})
    single = torch.tensor([7.0]).expand(1).as_strided((1,), (0,))  # one value, and no step to the next
    assert hash_tensors({"a": single}) == hash_tensors({"a": torch.tensor([7.0])})
    assert hash_tensors({"a": single[:0]}) == hash_tensors({"a": torch.zeros(0)})
    others = [
        {"b": weights["b"]},
        weights | {"b": weights["b"].view(3, 2)},
        weights | {"b": weights["b"].double()},
        weights | {"b": weights["b"] + 1e-6},
        {"c": weights["b"], "a": weights["a"]},
    ]
    assert len({found, *map(hash_tensors, others)}) == 1 + len(others)
