"""Registries: the names of pruners, tasks, models, ... and where each is defined."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from console.errors import InputError, nearest

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Name -> object, which is imported on first use.

    To add one, write its file and one line in the registry. Its properties are attributes of the object itself.
    """

    def __init__(self, kind: str, places: Mapping[str, str], also: str = ""):
        """kind: their name in messages. places: name -> "module:attribute". also: other accepted values."""
        self.kind, self._places, self._also = kind, dict(places), also

    def check(self, name: str) -> None:
        """InputError with the nearest name for an unknown one; imports nothing."""
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
