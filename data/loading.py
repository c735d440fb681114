"""A loader's batches, and what its worker processes say of bad input, as it was said there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from console.errors import InputError

T = TypeVar("T")


def plainly(loader: Iterable[T]) -> Iterator[T]:
    """The items of a loader. An InputError in a worker arrives with the worker's traceback as its text: only the
    sentence is raised again."""
    try:
        yield from loader
    except InputError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None
