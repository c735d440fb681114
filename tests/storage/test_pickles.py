"""Objects beside the weights: the harmless ones are read, the others refused, and nothing is run."""

import argparse
import collections
import datetime
import pathlib
import pickle
import types

import numpy as np
import pytest
import torch

from console.errors import InputError
from storage.tensors import read_tensors

SAME = {
    "namespace": argparse.Namespace(lr=0.1, betas=(0.9, 0.95), tags={"a", "b"}),
    "simple namespace": types.SimpleNamespace(lr=0.1),
    "float64": np.float64(0.7),
    "float32": np.float32(0.25),
    "int64": np.int64(-3),
    "uint8": np.uint8(200),
    "bool": np.bool_(True),
    "complex": np.complex128(1 + 2j),
    "big endian": np.array(1.5, dtype=">f8")[()],
    "text": np.str_("añb"),
    "path": pathlib.Path("a/b.yaml"),
    "windows": pathlib.PureWindowsPath("c:/a"),
    "ordered": collections.OrderedDict(a=1),
    "default": collections.defaultdict(list, {"a": [1]}),
    "counter": collections.Counter("abba"),
    "time": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    "span": datetime.timedelta(days=2),
    "version": torch.__version__,
    "size": torch.Size([2, 3]),
    "dtype": torch.bfloat16,
    "set": {1, 2},
    "frozen": frozenset({1}),
    "range": range(3),
    "ellipsis": ...,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("what", SAME)
def test_harmless_objects(what, zipped, tmp_path):
    allowed = set(torch.serialization.get_safe_globals())
    torch.save({"w": torch.ones(2), "x": SAME[what]}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = read_tensors(tmp_path / "a.pth")
    assert torch.equal(content["w"], torch.ones(2))
    assert content["x"] == SAME[what]
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_arrays_and_rare_types_are_skipped(tmp_path):
    beside = [np.arange(3), np.array([{"a": 1}], dtype=object), np.datetime64("2020-01-01"), collections.deque([1, 2])]
    torch.save({"w": torch.ones(2), "x": beside}, tmp_path / "a.pth")
    content = read_tensors(tmp_path / "a.pth")
    assert torch.equal(content["w"], torch.ones(2))
    assert content["x"][3] == [1, 2]


def test_names_of_numpy_1(tmp_path):
    """The same file with `numpy.core`, as numpy 1 wrote it."""
    torch.save({"x": np.float64(0.7)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    raw = (tmp_path / "a.pth").read_bytes()
    assert b"numpy._core.multiarray" in raw
    (tmp_path / "a.pth").write_bytes(raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_tensors(tmp_path / "a.pth")["x"] == 0.7


class ForgedType:
    """The type of objects, whose flags say that it is none."""

    def __reduce__(self):
        return np.dtype, ("O", False, True), (3, "|", None, None, None, -1, -1, 0)


class ForgedNumber:
    """Of which numpy itself takes the bytes for the address of an object: the process ends with SIGSEGV."""

    def __reduce__(self):
        return np._core.multiarray.scalar, (ForgedType(), b"\x01\x02\x03\x04\x05\x06\x07\x08")


def test_forged_scalars_are_not_made(tmp_path):
    torch.save({"w": torch.ones(2), "x": ForgedNumber()}, tmp_path / "a.pth")
    assert "not read" in repr(read_tensors(tmp_path / "a.pth")["x"])


class OwnConfig:
    """A class of the user's own."""


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
def test_other_classes_are_named(zipped, tmp_path):
    torch.save({"w": torch.ones(2), "x": OwnConfig()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        InputError, match=r"an object of tests\.storage\.test_pickles\.OwnConfig, .* is refused; .*state_dict\(\)"
    ) as caught:
        read_tensors(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)


def test_whole_modules_and_programs_are_named(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(InputError, match=r"an object of torch\.nn\.modules\.linear\.Linear"):
        read_tensors(tmp_path / "module.pth")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "program.pt")
    with pytest.raises(InputError, match="a TorchScript program"):
        read_tensors(tmp_path / "program.pt")


@pytest.mark.parametrize("protocol", [4, 5])
def test_later_protocols_are_no_damage(protocol, tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pth", pickle_protocol=protocol)
    (tmp_path / "b.pth").write_bytes(pickle.dumps({"w": torch.ones(2)}, protocol))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(InputError, match=f"pickled with protocol {protocol}.*write it again"):
            read_tensors(tmp_path / name)


def test_format_is_told_by_content(tmp_path):
    from safetensors.torch import save_file

    for name in ("a.bin", "a.pth", "a.ckpt", "a"):
        save_file({"w": torch.ones(2)}, tmp_path / name)
        assert torch.equal(read_tensors(tmp_path / name)["w"], torch.ones(2))
    for zipped in (True, False):
        torch.save({"w": torch.ones(2)}, tmp_path / "b.safetensors", _use_new_zipfile_serialization=zipped)
        assert torch.equal(read_tensors(tmp_path / "b.safetensors")["w"], torch.ones(2))
