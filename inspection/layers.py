"""Statistics of a mask: kept weights, dead neurons and collapsed layers; layers as a tree.

An output neuron is dead if all weights of its row are pruned (its output is its bias), an input if all weights of its
column are (it is not used). The inputs of a convolution are channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from console.words import counted
from pruners.report import collapses, shorten
from sparsity.mask import Mask

NEARLY_EMPTY = 0.01
"""Density below which a layer is reported as nearly empty."""

MOSTLY_DEAD = 0.5
"""Share of dead outputs or inputs above which a layer is reported."""


@dataclass(frozen=True)
class Counts:
    """Weights and neurons of a layer or of several; counts can be added."""

    size: int = 0
    kept: int = 0
    outputs: int = 0
    dead_outputs: int = 0
    inputs: int = 0
    dead_inputs: int = 0

    @property
    def sparsity(self) -> float:
        """Share of weights pruned."""
        return 1 - self.kept / max(1, self.size)

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field) + getattr(other, field) for field in self.__dataclass_fields__))


def count_layers(mask: Mask) -> dict[str, Counts]:
    """Layer -> its counts, in the order of the mask."""
    return {name: count_layer(mask, name) for name in mask}


def count_layer(mask: Mask, name: str) -> Counts:
    """Counts of one layer, a matrix [o, i] or a convolution [o, i, ...]; rows of whole bytes are never unpacked."""
    form = mask.form(name)
    o, i, *kernel = form.matrix_shape if form.transposed else (*form.shape, 1)[: max(2, len(form.shape))]
    if not kernel and i % 8 == 0 and not form.transposed:
        rows = mask.bits(name).reshape(o, i // 8)
        live_outputs = np.count_nonzero(rows.any(axis=1))
        live_inputs = np.bitwise_count(np.bitwise_or.reduce(rows, axis=0)).sum(dtype=int)
    else:
        kept = mask.matrix(name).numpy().reshape(o, i, -1)
        live_outputs = np.count_nonzero(kept.any(axis=(1, 2)))
        live_inputs = np.count_nonzero(kept.any(axis=(0, 2)))
    return Counts(mask.size(name), mask.kept(name), o, o - int(live_outputs), i, i - int(live_inputs))


def total(counts: Iterable[Counts]) -> Counts:
    """The sum of some layers."""
    return sum(counts, Counts())


def warnings(mask: Mask, counts: dict[str, Counts]) -> list[str]:
    """Warnings of empty and nearly empty layers, and of layers whose neurons are mostly dead."""
    live = {name: count for name, count in counts.items() if count.kept}
    groups = (
        (
            f"fewer than {NEARLY_EMPTY:.0%} of the weights are kept",
            [name for name, c in live.items() if c.kept < NEARLY_EMPTY * c.size],
        ),
        (
            "more than half of the outputs are dead",
            [name for name, c in live.items() if c.dead_outputs > MOSTLY_DEAD * c.outputs],
        ),
        (
            "more than half of the inputs are dead",
            [name for name, c in live.items() if c.dead_inputs > MOSTLY_DEAD * c.inputs],
        ),
    )
    return collapses(mask) + [f"{what} in {_listed(names)}" for what, names in groups if names]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{counted(len(names), 'layer')}: {', '.join(names[:3])}{more}"


@dataclass
class Node:
    """A modality, a block or a layer, with the layers that belong to it. number: of the modality."""

    label: str
    number: int
    layers: list[str] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)


def layer_tree(modalities: Mapping[str, Sequence[str]]) -> list[Node]:
    """The tree of modalities, blocks and layers; a block with a single layer becomes that layer."""
    roots = []
    for number, (modality, names) in enumerate(modalities.items()):
        root = Node(modality, number, list(names))
        blocks: dict[str, Node] = {}
        for name in names:
            label, rest = block_and_rest(name)
            block = blocks.setdefault(label, Node(label, number))
            block.layers.append(name)
            block.children.append(Node(rest, number, [name]))
        for block in blocks.values():
            if len(block.children) == 1:
                block.label, block.children = f"{block.label}.{block.children[0].label}".lstrip("."), []
            root.children += [block] if block.label else block.children  # top-level layers have no block
        roots.append(root)
    return roots


def block_and_rest(name: str) -> tuple[str, str]:
    """A parameter's block (up to the first number in its name) and the rest of its name, both shortened.

    vision_encoder.encoder.layers.0.mlp.fc1.weight -> (vision_encoder.0, mlp.fc1)
    """
    parts = name.removesuffix(".weight").split(".")
    numbers = [k for k, part in enumerate(parts[:-1]) if part.isdigit()]
    cut = numbers[0] + 1 if numbers else len(parts) - 1
    block, rest = ".".join(parts[:cut]), ".".join(parts[cut:])
    return shorten(block) or block, shorten(rest) or rest
