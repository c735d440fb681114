"""Read objects that training files hold next to their weights, without running code from the file.

torch's restricted unpickler (`weights_only=True`) calls only allowed functions. This module allows further common and
harmless ones. NumPy's own unpickling functions are not among them: with a forged dtype, `scalar` treats bytes of the
file as the address of an object. Stand-ins build plain values instead.
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
import types
from typing import Any

import numpy as np
import torch


class Unread:
    """Stands in for an object whose content is not needed: a NumPy array, or a scalar of a rare type."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __repr__(self) -> str:
        return "<not read>"


class Dtype:
    """Stands in for numpy.dtype: the code that it was made with ("f8"), and its byte order."""

    def __init__(self, code: str, *flags: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="


def scalar(dtype: Dtype, content: bytes = b"") -> object:
    """A numpy number, truth value or text from its bytes."""
    if not re.fullmatch(r"[biufcSU]\d+", dtype.code):
        return Unread()
    return np.frombuffer(content, dtype.order + dtype.code, count=1)[0]


def plain_dict(factory: object = None) -> dict[Any, Any]:
    """Of a defaultdict; its items are set afterwards."""
    return {}


def plain_list(items: list[Any] | None = None, longest: int | None = None) -> list[Any]:
    """Of a deque; its items are added afterwards."""
    return list(items or ())


_PATHS = {"PosixPath": pathlib.PurePosixPath, "WindowsPath": pathlib.PureWindowsPath}
_PATHS |= {f"Pure{name}": path for name, path in _PATHS.items()}

HARMLESS: list[tuple[Any, str]] = [
    *((path, f"{module}.{name}") for name, path in _PATHS.items() for module in ("pathlib", "pathlib._local")),
    *((kind, f"builtins.{kind.__name__}") for kind in (bool, dict, float, frozenset, int, list, slice, str, tuple)),
    *((range, f"builtins.{name}") for name in ("range", "xrange")),  # the latter in protocol 2
    (..., "builtins.Ellipsis"),
    *((getattr(datetime, name), f"datetime.{name}") for name in ("date", "datetime", "time", "timedelta", "timezone")),
    (argparse.Namespace, "argparse.Namespace"),
    (types.SimpleNamespace, "types.SimpleNamespace"),
    (torch.torch_version.TorchVersion, "torch.torch_version.TorchVersion"),
    (plain_dict, "collections.defaultdict"),
    (plain_list, "collections.deque"),
    (Dtype, "numpy.dtype"),
    (Unread, "numpy.ndarray"),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((Unread, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
"""(stand-in, name in the file); names differ between NumPy 1 and 2, and for paths since Python 3.13."""


def harmless() -> torch.serialization.safe_globals:
    """Inside, torch also reads `HARMLESS`; names that the user allowed stay allowed afterwards."""
    allowed = torch.serialization.get_safe_globals()
    return torch.serialization.safe_globals([entry for entry in HARMLESS if entry not in allowed])


def culprit(error: Exception) -> str | None:
    """The class or function that the restricted unpickler refused; None for other errors."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return found[1] if found else None
