"""Hashes of files, tensors and JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console.errors import explain_os_error

if TYPE_CHECKING:
    from torch import Tensor


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` prints it."""
    return hash_files([path])


def hash_files(paths: Iterable[Path | str]) -> str:
    """SHA-256 of the bytes of several files one after the other, as `cat FILES | sha256sum` prints it."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            with Path(path).open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        except OSError as error:
            raise explain_os_error(error, f"read {path}") from error
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON-like value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, types, shapes and values, in the order of names."""
    import torch  # imported here, since most hashes need no torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.as_strided((tensor.numel(),), (1,))  # for a single value, reshape may keep a stride of 0
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
