"""Weights in shards: as transformers writes them, without their index, incomplete, and beside other files."""

import json
import subprocess

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file

from console.errors import InputError
from storage.hashing import hash_file, hash_files
from storage.shards import weight_files
from storage.tensors import read_tensors

STATE = {f"layer.{i}.weight": torch.full((4, 4), float(i)) for i in range(6)}


def write_shards(folder, ending, index=True):
    """As the hub's own library splits a state dict; returns the files."""
    start = {"safetensors": "model", "bin": "pytorch_model"}[ending]
    split = split_torch_state_dict_into_shards(
        STATE, filename_pattern=f"{start}{{suffix}}.{ending}", max_shard_size=2 * 4 * 4 * 4
    )
    assert split.is_sharded
    for name, keys in split.filename_to_tensors.items():
        part = {key: STATE[key] for key in keys}
        save_file(part, folder / name) if ending == "safetensors" else torch.save(part, folder / name)
    if index:
        about = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{start}.{ending}.index.json").write_text(json.dumps(about))
    return sorted(folder / name for name in split.filename_to_tensors)


def same(found):
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
def test_any_part_stands_for_all(ending, index, tmp_path):
    files = write_shards(tmp_path, ending, index)
    assert len(files) == 3
    named = [tmp_path, *files, *tmp_path.glob("*.json")]
    for path in named:
        assert weight_files(path) == files
        assert same(read_tensors(path))


def test_safetensors_go_before_pickles(tmp_path):
    files = write_shards(tmp_path, "safetensors")
    torch.save({"old": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    torch.save({"old": torch.zeros(1)}, tmp_path / "optimizer.pt")
    assert weight_files(tmp_path) == files


def test_a_folder_with_one_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "._best.pth").write_bytes(b"of another system")
    torch.save(STATE, tmp_path / "best.pth")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth"):
        torch.save({"state": {}}, tmp_path / name)
    assert weight_files(tmp_path) == [tmp_path / "best.pth"]


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
def test_missing_shards_are_named(ending, index, tmp_path):
    files = write_shards(tmp_path, ending, index)
    files[1].unlink()
    for path in (tmp_path, files[0]):
        with pytest.raises(InputError, match=rf"3 shards, of which 1 is missing.*00002-of-00003\.{ending}"):
            weight_files(path)


def test_folders_that_do_not_say_which(tmp_path):
    with pytest.raises(InputError, match=r"a folder without weights"):
        weight_files(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save(STATE, tmp_path / name)
    with pytest.raises(InputError, match=r"several weights files \(a\.pth, b\.pth\): name one"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "has no 'weight_map'"),
        ('{"weight_map": {}}', "has no 'weight_map'"),
        ('{"weight_map": {"a": "../../other.safetensors"}}', "which is not in its folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "which is not in its folder"),
    ],
)
def test_what_is_no_index(content, message, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(InputError, match=message):
        weight_files(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    for number in (1, 2):
        save_file(STATE, tmp_path / f"m-{number}-of-2.safetensors")
    with pytest.raises(
        InputError, match=r"m-2-of-2\.safetensors holds 'layer\.0\.weight', which is also in an earlier shard"
    ):
        read_tensors(tmp_path)


def test_hash_is_that_of_the_shards_in_order(tmp_path):
    files = write_shards(tmp_path, "safetensors")
    expected = subprocess.run("cat *.safetensors | sha256sum", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert hash_files(files) == expected.stdout.split()[0]
    assert hash_files(files[:1]) == hash_file(files[0])
