"""Names of things of one kind, and where each is written: what the rest of the toolkit knows of them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from console.errors import InputError, nearest

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Name -> thing, imported when it is first asked for: names alone cost nothing.

    A new one is its file and one line in a registry. Facts about it are attributes of the thing itself.
    """

    def __init__(self, kind: str, places: Mapping[str, str], also: str = ""):
        """kind: what they are called in messages. places: name -> "module:attribute". also: what else may be given."""
        self.kind, self._places, self._also = kind, dict(places), also

    def check(self, name: str) -> None:
        """InputError with the nearest name when there is no such thing; imports nothing."""
        if name not in self._places:
            choices = ", ".join(self) + (f" {self._also}" if self._also else "")
            raise InputError(f"unknown {self.kind} '{name}'{nearest(str(name), self)}: choose one of {choices}")

    def __getitem__(self, name: str) -> T:
        self.check(name)
        module, _, attribute = self._places[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
