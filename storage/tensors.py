"""Read and write files of named tensors: safetensors, and PyTorch files without running code from them."""

from __future__ import annotations

import errno
import json
import os
import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from console.errors import InputError, explain_os_error
from storage.atomic import atomic_path


def read_tensors(path: Path | str) -> Any:
    """Whatever a `.safetensors` or PyTorch file holds (a dict of tensors, possibly nested), on the CPU.

    Raises InputError when the file is missing, corrupt, or a pickle with anything but plain tensors in it.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        if error.errno == errno.EINVAL:  # of a zip file cut short: torch looks for its end before its beginning
            raise _corrupt(path, error) from error
        raise explain_os_error(error, f"read {path}") from error
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower():
            raise InputError(
                f"{path} is no file of tensors, or holds other Python objects besides, whose loading could run code: "
                "it is refused; save a plain dict of tensors instead"
            ) from error
        raise _corrupt(path, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise _corrupt(path, error) from error


def read_safetensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file; InputError when it is missing or corrupt."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error
    except SafetensorError as error:
        raise _corrupt(path, error) from error


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata alone of a `.safetensors` file; InputError when it is missing or corrupt."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error
    except SafetensorError as error:
        raise _corrupt(path, error) from error


def parse_metadata(path: Path | str, metadata: dict[str, str], key: str, needs: Iterable[str] = ()) -> Any:
    """The JSON value under `key` of a file's metadata; InputError when it is missing, broken, or lacks a needed key."""
    try:
        value = json.loads(metadata[key])
    except (KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is damaged: its metadata '{key}' cannot be read; write it again") from error
    lacking = [need for need in needs if not isinstance(value, dict) or need not in value]
    if lacking:
        raise InputError(f"{path} is damaged: its metadata '{key}' lacks '{lacking[0]}'; write it again")
    return value


def write_safetensors(path: Path | str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write named tensors and metadata to `path` atomically: the same content, the same bytes.

    Tensors on the CPU are not copied.
    """
    with atomic_path(path) as temporary:
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            raise InputError(f"cannot write {path}: {error}; free some disk space or choose another folder") from error
        _order_metadata(temporary)
        os.umask(umask := os.umask(0))
        temporary.chmod(0o666 & ~umask)  # the library lets nobody else read its files


def _order_metadata(path: Path) -> None:
    """Sort the metadata of a new file in place: the library writes it in another order each time."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
            if len(text) == length:  # spaces may follow the header; it may not grow
                file.seek(8)
                file.write(text)


def write_torch(path: Path | str, content: Any) -> None:
    """Write what `torch.save` can pickle to `path` atomically; InputError when the disk is full and the like."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's zip writer ends with an error of its own; what the file system said is the one before it.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _corrupt(path: Path | str, error: Exception) -> InputError:
    lines = str(error).strip().splitlines()
    # A pickle that is none ends in a stray key or opcode, which tells nobody anything.
    reason = f" ({shorten(lines[0], 120, placeholder=' ...')})" if lines and len(lines[0].split()) > 2 else ""
    return InputError(f"{path} is corrupt or no file of tensors{reason}: fetch or write it again")
