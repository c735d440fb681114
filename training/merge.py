"""Merge the processes' shares of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist
from lightning.fabric import Fabric

from data.records import Id

T = TypeVar("T")


def gather_shares(fabric: Fabric, share: dict[Id, T]) -> dict[Id, T]:
    """One dict of all processes' shares, by rising key, on every process; RuntimeError when two have the same key."""
    shares: list[dict[Id, T]] = [share]
    if fabric.world_size > 1:
        shares = [{} for _ in range(fabric.world_size)]
        dist.all_gather_object(shares, share)
    found: dict[Id, T] = {}
    for part in shares:
        twice = found.keys() & part.keys()
        if twice:
            raise RuntimeError(f"two processes evaluated sample {min(twice)!r}: shares must not overlap")
        found |= part
    return dict(sorted(found.items()))


def same_everywhere(fabric: Fabric, what: Callable[[], str], name: str) -> None:
    """RuntimeError unless `what()` is the same text on all processes; not called with a single process."""
    if fabric.world_size > 1:
        found: list[str] = [""] * fabric.world_size
        dist.all_gather_object(found, what())
        if len(set(found)) > 1:
            raise RuntimeError(f"processes have different {name}s: this is a bug")
