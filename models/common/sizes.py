"""Sizes of a stack of transformer layers, each layer its own: heads, the width of a head, hidden neurons.

Published models have one number for all layers; a stack with removed heads or neurons has lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

from console.errors import InputError


class LayerSizes(NamedTuple):
    """Of one layer: attention has `heads` heads of `head_width`, the MLP `mlp` hidden neurons."""

    heads: int
    head_width: int
    mlp: int


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Sizes of a stack of transformer layers."""

    width: int  # d, of the states between layers: equal in all layers
    layers: int  # number of layers
    heads: list[int] | int  # of each attention: one number for all layers, or a list
    mlp: list[int] | int  # hidden neurons: one number, or a list
    head_width: int | None = None  # None: width / heads, with one number of heads

    def __post_init__(self) -> None:
        check_sizes("heads", self.heads, self.layers)
        check_sizes("mlp", self.mlp, self.layers)
        if self.head_width is None and isinstance(self.heads, list):
            raise InputError("head_width is missing: with a number of heads for each layer, say how wide a head is")
        if self.head_width is None and self.width % self.heads:
            raise InputError(f"a width of {self.width} does not divide into {self.heads} heads: give head_width")

    def layer(self, number: int) -> LayerSizes:
        """The sizes of a layer, from 0."""
        head_width = self.head_width or self.width // self.heads
        return LayerSizes(of_layer(self.heads, number), head_width, of_layer(self.mlp, number))

    def only(self, kept: Sequence[int], **changes: Any) -> Self:
        """Of a stack with these of its layers. changes: of other fields."""
        sizes = {name: only(getattr(self, name), kept) for name in ("heads", "mlp")}
        return replace(self, layers=len(kept), **sizes, **changes)


def only(sizes: list[int] | int, kept: Sequence[int]) -> list[int] | int:
    """The sizes of these layers."""
    return [sizes[number] for number in kept] if isinstance(sizes, list) else sizes


def of_layer(sizes: list[int] | int, number: int) -> int:
    """The size of a layer, from 0."""
    return sizes[number] if isinstance(sizes, list) else sizes


def check_sizes(what: str, sizes: list[int] | int, layers: int) -> None:
    """InputError unless there is one size for all layers, or one a layer, and each is at least 1."""
    if isinstance(sizes, list) and len(sizes) != layers:
        raise InputError(f"{what} has {len(sizes)} numbers for {layers} layers: give one for all, or one a layer")
    if min(sizes if isinstance(sizes, list) else [sizes], default=1) < 1:
        raise InputError(f"{what} must be at least 1 in each layer, not {sizes}")
