"""Locate weights: a file, a folder with a file, or shards with or without an index."""

from __future__ import annotations

import json
import re
from pathlib import Path

from console.errors import InputError, explain_os_error
from console.words import agreed, counted

SHARD = re.compile(r"(?P<start>.+)-(?P<number>\d+)-of-(?P<total>\d+)(?P<ending>\.\w+)")
"""`model-00001-of-00003.safetensors`, as transformers names shards."""

INDEX = ".index.json"
ENDINGS = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
OTHERS = ("optimizer", "scheduler", "scaler", "training_args", "rng_state", "random_states")
"""Prefixes of other files with the same extensions that training software writes next to weights."""

USUAL = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
"""Names of weights in a folder, in transformers' order of preference."""


def weight_files(path: Path | str) -> list[Path]:
    """The files that hold the weights named by `path`: a file, an index of shards, any of the shards, or a folder.

    Shards come in the order of their names. Raises InputError when one is missing, and for a folder that holds no
    weights or several.
    """
    path = Path(path)
    if path.is_dir():
        return weight_files(_of_folder(path))
    if not path.exists():
        raise InputError(f"cannot read {path}: no such file or folder; check the path")
    if path.name.endswith(".json"):
        return _listed(path)
    shard = SHARD.fullmatch(path.name)
    if shard is None:
        return [path]
    index = _index_of(path)
    return _listed(index) if index else _numbered(path, shard)


def _of_folder(folder: Path) -> Path:
    """The file, index or first shard of a folder's weights; safetensors are preferred to pickles."""
    for name in USUAL:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", *OTHERS)))
    for endings in (ENDINGS[:1], ENDINGS[1:]):
        kinds = (*endings, *(f"{ending}{INDEX}" for ending in endings))
        found = [path for path in there if path.name.endswith(kinds)]
        indexes = [path for path in found if path.name.endswith(INDEX)]
        listed = {shard for index in indexes for shard in _listed(index)}
        others = {_first(path) for path in found if path not in indexes and path not in listed}
        choice = sorted(indexes + list(others))
        if len(choice) > 1:
            named = ", ".join(path.name for path in choice[:5])
            raise InputError(f"{folder} is a folder with several weights files ({named}): name one of them")
        if choice:
            return choice[0]
    raise InputError(
        f"{folder} is a folder without weights: no file in it ends in {', '.join(ENDINGS)} or {INDEX}; name a file"
    )


def _first(path: Path) -> Path:
    """The first shard of the same set; a file that is no shard stands for itself."""
    shard = SHARD.fullmatch(path.name)
    return path if shard is None else _numbered(path, shard)[0]


def _numbered(path: Path, shard: re.Match[str]) -> list[Path]:
    """All shards of a set without an index, by their names."""
    width, total = len(shard["number"]), int(shard["total"])
    names = [
        f"{shard['start']}-{number:0{width}}-of-{shard['total']}{shard['ending']}" for number in range(1, total + 1)
    ]
    return _present(path, [path.with_name(name) for name in names])


def _index_of(path: Path) -> Path | None:
    """The index next to a shard that lists it."""
    indexes = sorted(path.parent.glob(f"*{INDEX}"))
    return next((index for index in indexes if path.name in _weight_map(index).values()), None)


def _listed(index: Path) -> list[Path]:
    """The shards that an index names."""
    names = sorted(set(_weight_map(index).values()))
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(
                f"{index} names the shard '{name}', which is not in its folder: give shards with their index"
            )
    return _present(index, [index.parent / name for name in names])


def _weight_map(index: Path) -> dict[str, str]:
    """Name of a tensor -> file name of its shard, as the index says."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except OSError as error:
        raise explain_os_error(error, f"read {index}") from error
    except ValueError as error:
        raise InputError(f"{index} is not an index of shards: it is not valid JSON ({error})") from error
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise InputError(f"{index} is not an index of shards: it has no 'weight_map' from tensors to files")
    return found


def _present(path: Path, shards: list[Path]) -> list[Path]:
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise InputError(
            f"{path} belongs to {counted(len(shards), 'shard')}, of which {len(missing)} "
            f"{agreed(len(missing), 'is')} missing (first: {missing[0].name}): download the complete set"
        )
    return shards
