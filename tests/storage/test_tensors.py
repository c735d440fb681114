"""Files of tensors: read back as written, refused when corrupt, and never run."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as to_bytes

from console.errors import InputError
from storage.tensors import read_safetensors, read_tensors, write_safetensors, write_torch
from tests.storage.test_atomic import file_size_limit, names

TENSORS = {
    "half": torch.randn(3, 4).half(),
    "turned": torch.arange(6).view(2, 3).t(),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(1.5),
    "none": torch.empty(0, 3),
}


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def same(found, expected):
    return found.keys() == expected.keys() and all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor) for name, tensor in expected.items()
    )


def test_safetensors_come_back_as_they_were(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", TENSORS, {"by": "a test"})
    tensors, metadata = read_safetensors(tmp_path / "a.safetensors")
    assert same(tensors, TENSORS)
    assert metadata == {"by": "a test"}
    assert same(read_tensors(tmp_path / "a.safetensors"), TENSORS)
    assert names(tmp_path) == ["a.safetensors"]


def test_the_same_content_is_the_same_file(tmp_path):
    """The library alone writes metadata in an order of chance."""
    metadata = {f"key {i}": f"é {i}" for i in range(10)}
    for number in range(4):
        write_safetensors(tmp_path / f"{number}.safetensors", TENSORS, metadata)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert read_safetensors(tmp_path / "0.safetensors")[1] == metadata


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_of_both_formats(zipped, tmp_path):
    torch.save({"model": TENSORS, "step": 3}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    content = read_tensors(tmp_path / "a.pth")
    assert content["step"] == 3
    assert same(content["model"], TENSORS)


def test_write_torch_is_what_torch_reads(tmp_path):
    write_torch(tmp_path / "a.pt", {"model": TENSORS, "lr": 0.5})
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content["lr"] == 0.5
    assert same(content["model"], TENSORS)
    assert names(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("kind", ["zip", "old", "plain pickle"])
def test_a_pickle_with_code_is_refused(kind, tmp_path):
    mark, file = tmp_path / "it-ran", tmp_path / "weights.pth"
    content = {"w": torch.zeros(2), "bomb": Bomb(mark)}
    if kind == "plain pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(InputError, match="whose loading could run code: it is refused"):
        read_tensors(file)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))  # the bomb is a live one
    assert mark.exists()


def good_file():
    return to_bytes({"w": torch.arange(12.0), "v": torch.ones(3)})


def header(text):
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        b"\xff" * 100,
        good_file()[:-1],
        good_file()[:40],
        good_file() + b"more",
        struct.pack("<Q", 1 << 60) + b"{}",
        header(b"{not json}"),
        header(b"[]"),
        header(json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}}).encode()) + bytes(8),
        header(json.dumps({"w": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}).encode()) + bytes(8),
    ],
    ids=["empty", "short", "noise", "cut", "cut in the header", "too long", "huge header", "no json", "list", "offsets",
         "dtype"],
)  # fmt: skip
def test_corrupt_safetensors(content, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.safetensors is corrupt or not a tensor file") as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_cut_short(share, zipped, tmp_path):
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"w": torch.randn(1000)}, whole, _use_new_zipfile_serialization=zipped)
    cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    with pytest.raises(InputError, match=r"cut\.pth is corrupt or not a tensor file") as caught:
        read_tensors(cut)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"this is text, not a checkpoint", bytes(1000), b"PK\x03\x04" + bytes(100)])
def test_other_files_under_a_pytorch_name(content, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pth"):
        read_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_missing_files_and_folders(name, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="folder"):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_safetensors(path, {"w": torch.zeros(100_000)}, {}),
        lambda path: write_torch(path, {"w": torch.zeros(100_000)}),
        lambda path: write_torch(path, {str(i): torch.zeros(100) for i in range(100)}),
    ],
    ids=["safetensors", "one large tensor", "many small tensors"],
)
def test_a_full_disk_while_writing_tensors(write, tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with file_size_limit(20_000), pytest.raises(InputError, match="cannot write") as caught:
        write(path)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == ["a"]
    assert path.read_text() == "old"


def test_other_errors_are_not_blamed_on_the_disk(tmp_path):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        write_torch(tmp_path / "a.pt", {"function": lambda: None})
    assert names(tmp_path) == []


def test_files_are_as_readable_as_others(tmp_path):
    (tmp_path / "other").touch()
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.zeros(1)}, {})
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_stands_in_the_place_of_a_file(name, tmp_path):
    for start, message in (
        ("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "a pointer of Git LFS, .*git lfs pull"),
        ("<!DOCTYPE html>\n<html>Not found</html>", "is a web page"),
    ):
        (tmp_path / name).write_text(start)
        with pytest.raises(InputError, match=message):
            read_tensors(tmp_path / name)
