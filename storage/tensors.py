"""Read and write files of named tensors: safetensors, and PyTorch files without running code from them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from console.errors import InputError, explain_os_error, is_out_of_memory
from storage.atomic import atomic_path
from storage.hashing import hash_json, hash_tensors
from storage.pickles import culprit, harmless
from storage.shards import weight_files

LONGEST_HEADER = 100_000_000
"""Most bytes of a safetensors header: the library refuses longer ones."""

SAFE_PROTOCOL = 3
"""The last pickle protocol that torch reads without running code."""


def read_tensors(path: Path | str) -> Any:
    """The content of a tensor file (a dict of tensors, possibly nested), on the CPU; shards are merged.

    path: a `.safetensors` or PyTorch file, recognised by its content, not its name, or anything else that
    `storage.shards.weight_files` accepts. Raises InputError when a file is missing, corrupt, or a pickle with objects
    other than tensors and those of storage/pickles.py.
    """
    files = weight_files(path)
    if len(files) == 1:
        return _read(files[0])
    whole: dict[str, Any] = {}
    for file in files:
        shard = _read(file)
        if not isinstance(shard, dict):
            raise InputError(f"{file} holds no dict of named tensors: it is not a shard of a model's weights")
        for name in shard:
            if name in whole:
                raise InputError(f"{file} holds '{name}', which is also in an earlier shard: download the set again")
        whole |= shard
    return whole


def _read(path: Path) -> Any:
    """What one file holds."""
    if is_safetensors(path):
        return read_safetensors(path)[0]
    protocol = _protocol(path)
    if protocol > SAFE_PROTOCOL:
        raise InputError(
            f"{path} is pickled with protocol {protocol}, which cannot be read without running code from it: it is "
            "refused; write it again as torch.save(model.state_dict(), FILE), which takes protocol 2"
        )
    try:
        # Without the check, indices of a sparse tensor may point outside of it.
        with harmless(), torch.sparse.check_sparse_tensor_invariants():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        if error.errno == errno.EINVAL:  # a truncated zip file: torch reads its end first
            raise _corrupt(path, error) from error
        raise explain_os_error(error, f"read {path}") from error
    except (pickle.UnpicklingError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise _refused(path, error) from error
    except (EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise _corrupt(path, error) from error


def is_safetensors(path: Path | str) -> bool:
    """Whether a file is of this format by its first bytes: the length of a header in JSON, and its first character.

    For a file of neither format its name decides, so that the message fits.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER:
        return True
    return Path(path).suffix == ".safetensors" and not start.startswith((b"PK", b"\x80"))


def read_safetensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file; InputError when it is missing or corrupt."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_metadata(path: Path | str) -> dict[str, str]:
    """The metadata alone of a `.safetensors` file; InputError when it is missing or corrupt."""
    with _opened(path) as file:
        return file.metadata() or {}


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[safe_open]:
    """A `.safetensors` file to read from; InputError when it is missing or corrupt."""
    try:
        if Path(path).is_dir():  # the library's message would be misleading
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        with safe_open(path, "pt") as file:
            yield file
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


def sealed(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> dict[str, str]:
    """Metadata with fingerprints of the tensors and of itself, for `check_seal`."""
    return metadata | {"sha256": hash_tensors(tensors), "sha256_of_metadata": hash_json(metadata)}


def check_seal(path: Path | str, tensors: Mapping[str, Tensor], metadata: dict[str, str], what: str) -> None:
    """InputError when a file with `sealed` metadata was changed; older files have one fingerprint or none.

    what: its tensors, in the plural, for the message.
    """
    written = {key: value for key, value in metadata.items() if not key.startswith("sha256")}
    for key, part, found in (
        ("sha256", what, lambda: hash_tensors(tensors)),
        ("sha256_of_metadata", "metadata", lambda: hash_json(written)),
    ):
        if key in metadata and metadata[key] != found():
            raise InputError(
                f"{path} is damaged: its {part} have changed since they were written; copy it again, or create it again"
            )


def write_like(source: Path, path: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    """Write `source` (safetensors) to `path` with changed tensors of the same shapes and types, one at a time.

    Header and order are the same, so that only the changed numbers differ. Not atomic: the caller's folder is.
    """
    with source.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        head = file.read(length)
    entries = {name: entry for name, entry in json.loads(head).items() if name != "__metadata__"}
    with safe_open(source, "pt") as tensors, path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + head)
        for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
            changed = change(name, tensors.get_tensor(name)).detach().cpu().contiguous()
            file.write(changed.reshape(-1).view(torch.uint8).numpy().data)


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
        temporary.chmod(0o666 & ~umask)  # the library writes files that only the owner can read


def _order_metadata(path: Path) -> None:
    """Sort the metadata of a new file in place: the library's order varies."""
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
            # torch's zip writer raises its own error; the file system's is the one before it.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _refused(path: Path, error: Exception) -> InputError:
    """The error for a file that torch refuses, naming its content if possible."""
    text = str(error)
    if found := culprit(error):
        return InputError(
            f"{path} holds an object of {found}, whose loading could run code: it is refused; where that class is "
            "available, save only the tensors with torch.save(model.state_dict(), FILE)"
        )
    if "TorchScript" in text or "legacy .tar format" in text:
        kind = "a TorchScript program" if "TorchScript" in text else "of a format that torch no longer reads"
        return InputError(
            f"{path} is {kind}, whose loading could run code: it is refused; load it with the software that wrote it, "
            "and save only the tensors with torch.save(model.state_dict(), FILE)"
        )
    if "Can only" in text or "Trying to call" in text:  # allowed objects in an order that only a forged file has
        return InputError(f"{path} is a pickle whose loading could run code: it is refused")
    return _corrupt(path, error)


def _protocol(path: Path) -> int:
    """The pickle protocol of a PyTorch file of either format; 0 where it is no such file."""
    with contextlib.suppress(zipfile.BadZipFile, KeyError, StopIteration, OSError):
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                start = file.read(2)
        else:
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                with archive.open(name) as file:
                    start = file.read(2)
        return start[1] if start[:1] == b"\x80" and len(start) == 2 else 0
    return 0


def _corrupt(path: Path | str, error: Exception) -> InputError:
    with Path(path).open("rb") as file:
        start = file.read(100).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return InputError(f"{path} is a pointer of Git LFS, not the file that it points to: run `git lfs pull`")
    if start.startswith(b"<"):
        return InputError(f"{path} is a web page, not a file of tensors: fetch the file itself, not its page")
    lines = str(error).strip().splitlines()
    # An invalid pickle fails with a meaningless key or opcode, which is left out.
    said = lines[0] if lines and len(lines[0].split()) > 2 and not lines[0].startswith("Weights only load") else ""
    reason = f" ({shorten(said, 120, placeholder=' ...')})" if said else ""
    return InputError(f"{path} is corrupt or not a tensor file{reason}: download or write it again")
