"""The removable parts of a model: heads, neurons and channels, each with all tensors that only it needs; and layers.

A set of `Units` is what one attention, one hidden layer or one convolution offers: `count` equal units, which one
`consumer` reads, `block` input features or channels each. `Layers` are a tower's blocks, each of which the residual
stream may pass by. Forms of the same choice:

    units(model)               -> list[Units]; InputError where there are none; `left_whole` says what stays, and why
    layers(model)              -> list[Layers]
    kept: {name: bool [count]} -> which units and layers of each set stay; a set that is not named stays whole
    masked(model, kept)        -> {parameter: bool}: a mask over the consumers' columns, for finetuning under a mask
    kept_units(model, masks)   -> kept, from element masks: a unit goes where no column of it is left
    surgery.cut(model, kept)   -> a smaller model, whose outputs equal the masked one's
    plans.Plan                 -> the same by original numbers, for files and for the next choice (`model.plan`)

In a masked model the rows, biases and normalisation of a removed unit still exist, but its output is not read.
Therefore removing the unit is exact, while zeroing its rows would not be. Removing a layer is not masking it: the
biases of its output layers are removed, too, and for a post-LN layer (BERT) also the norm.

A model says what it has in `Model.parts` (models/base.py), by the readers of its blocks (models/library/timm_parts.py,
hf_parts.py) or one call per set (models/library/parts.py); `wrap(module, parts=...)` takes a function for any module:

    wrap(module, parts=lambda m: [units_of(m, "mlp", "neurons", feeds=["mlp.up"], reads="mlp.down")])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from console.errors import InputError, nearest
from models.library.finding import Skipped, skipped_lines

if TYPE_CHECKING:
    from models.base import Model

Kind = Literal["channels", "neurons", "heads"]

Kept = Mapping[str, Tensor]
"""Name of a set of units, or of a row of layers -> bool [count], True stays."""


@dataclass(frozen=True)
class Slices:
    """Entries of a set of units in a tensor: along `axis`, `repeats` times (fused qkv: 3), count x block of them."""

    tensor: str
    axis: int
    block: int
    repeats: int

    def entries(self, kept: Tensor) -> Tensor:
        """Which entries along the axis stay, bool [repeats x count x block], of kept [count]."""
        return kept.repeat_interleave(self.block).repeat(self.repeats)

    def by_unit(self, tensor: Tensor, count: int) -> Tensor:
        """A tensor of this shape as [repeats, count, entries], a row per unit; `count` may be 0."""
        rows = tensor.movedim(self.axis, 0)
        return rows.reshape(self.repeats, count, rows.numel() // max(1, self.repeats * count))


@dataclass(frozen=True)
class Units:
    """A set of units that can be removed one by one.

    name: path of the module that they are in. block: of each unit, entries along the axis of the `consumer` (a
    prunable parameter) that reads them: a head's width. axis: of the consumer's inputs. slices: where they are in
    tensors, the consumer's among them, by the names of `model.inner`. attributes: path -> numbers a unit, for what a
    module counts itself (`blocks.0.attn.num_heads`: 1).
    """

    name: str
    kind: Kind
    count: int
    block: int
    consumer: str
    axis: int
    slices: tuple[Slices, ...]
    attributes: tuple[tuple[str, int], ...] = ()

    def over_inputs(self, values: Tensor, shape: torch.Size) -> Tensor:
        """One value a unit, [count], of any type, as a tensor of the consumer's shape: each unit's at its inputs."""
        along = [1] * len(shape)
        along[self.axis] = -1
        return values.repeat_interleave(self.block).reshape(along).expand(shape)

    def by_unit(self, weight: Tensor) -> Tensor:
        """A tensor of the consumer's shape as [count, entries]: a row per unit, of the weights that read it."""
        return weight.movedim(self.axis, 0).reshape(self.count, -1)


@dataclass(frozen=True)
class Layers:
    """A row of layers. Any of them can be removed, as long as one of each tower stays.

    name: path of the list that holds them. also: paths of lists from which the same layers are removed, since they
    share tensors. counts: paths of attributes that hold the number of layers; numbers: names of attributes of modules
    inside a layer that hold its number. towers: modality of each layer.
    """

    name: str
    count: int
    also: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    towers: tuple[str, ...] = ()
    kind: Literal["layers"] = "layers"

    @property
    def lists(self) -> tuple[str, ...]:
        """All of the paths."""
        return (self.name, *self.also)


Part = Units | Layers | Skipped
"""What a model says of itself: `Skipped` is a weight whose units have to stay, with the reason."""


def inventory(model: Model) -> tuple[list[Units], list[Skipped]]:
    """The model's sets of units, each once, and the weights that cannot be cut, with reasons."""
    prunable = model.prunable_layers()
    reasons = {skipped.name: skipped.reason for skipped in model.skipped}
    tensors = named_tensors(model)
    found = [one for one in all_sets(model) if isinstance(one, Units)]
    left = [part for part in model.parts() if isinstance(part, Skipped)]
    for one in found:
        if one.consumer not in prunable:
            reason = reasons.get(one.consumer, "the layer that reads it is never pruned")
            left.append(Skipped(one.consumer, reason, tensors[one.consumer].numel()))
    reached = {id(tensors[at.tensor]) for one in found for at in one.slices}
    named = {skipped.name for skipped in left}
    for name, layer in prunable.items():
        if id(layer.weight) not in reached and name not in named:
            left.append(Skipped(name, "no removable units are known for it", layer.weight.numel()))
    return [one for one in found if one.consumer in prunable], left


def all_sets(model: Model) -> list[Units | Layers]:
    """All that can be removed, also units whose consumer is never pruned (a head).

    The same units are removed from modules that share their consumer (encoder and decoder of BLIP) and from momentum
    copies: they are one set. The same holds for rows of layers.
    """
    tensors = named_tensors(model)
    names = {id(tensor): name for name, tensor in reversed(tensors.items())}
    prunable = {id(layer.weight): name for name, layer in model.prunable_layers().items()}
    prunable |= {id(layer.weight): name for name, layer in model.followers().items()}
    names |= prunable
    sets: dict[str, Units] = {}
    rows: dict[str, Layers] = {}  # name of a parameter in a row of layers -> the row
    for part in model.parts():
        if isinstance(part, Units):
            consumer = names[id(tensors[part.consumer])]
            first = sets.get(consumer)
            sets[consumer] = _joined(first, part, tensors) if first else replace(part, consumer=consumer)
        elif isinstance(part, Layers):
            inside = _by_layer(part, tensors)
            owned = [names[id(tensors[name])] for layer in inside for name in layer]
            row = next((rows[name] for name in owned if name in rows), None)
            if row is None:
                own = (next((name for name in layer if id(tensors[name]) in prunable), None) for layer in inside)
                row = replace(part, towers=tuple("" if name is None else model.modality_of(name) for name in own))
            else:
                row = replace(row, also=(*row.also, part.name), counts=row.counts + part.counts)
            rows |= dict.fromkeys((*owned, *(name for name, other in rows.items() if other.name == row.name)), row)
    return [*sets.values(), *{row.name: row for row in rows.values()}.values()]


def _by_layer(row: Layers, names: Iterable[str]) -> list[list[str]]:
    """Names of tensors in each layer of a row."""
    inside: list[list[str]] = [[] for _ in range(row.count)]
    for name in names:
        if name.startswith(f"{row.name}."):
            inside[int(name.removeprefix(f"{row.name}.").partition(".")[0])].append(name)
    return inside


def layers(model: Model) -> list[Layers]:
    """All rows of layers that can be left out, in the model's order."""
    return [one for one in all_sets(model) if isinstance(one, Layers)]


def units(model: Model) -> list[Units]:
    """All sets of units that can be removed, in the model's order; InputError with the reasons where there are none."""
    found, left = inventory(model)
    if not found:
        why = "; ".join(skipped_lines(left)) or "it has no prunable layers"
        raise InputError(
            f"{type(model.inner).__name__} has no removable heads, neurons or channels ({why}): name "
            "them with wrap(..., parts=...), or prune single weights"
        )
    return found


def left_whole(model: Model) -> list[Skipped]:
    """Prunable layers of which no unit can be removed, with the reasons."""
    return inventory(model)[1]


def _joined(first: Units, other: Units, tensors: Mapping[str, Tensor]) -> Units:
    """One set of two that go together: tensors that they share count once."""
    seen = {id(tensors[at.tensor]) for at in first.slices}
    more = tuple(at for at in other.slices if id(tensors[at.tensor]) not in seen)
    return replace(first, slices=first.slices + more, attributes=first.attributes + other.attributes)


def named_tensors(model: Model) -> dict[str, Tensor]:
    """Parameters and buffers by all names that they have in `model.inner`."""
    inner = model.inner
    return dict(inner.named_parameters(remove_duplicate=False)) | dict(inner.named_buffers(remove_duplicate=False))


def checked(found: Iterable[Units | Layers], kept: Kept) -> dict[str, Tensor]:
    """`kept` of all sets, on the CPU; InputError for names and shapes that do not fit, and where nothing is left."""
    sets = {one.name: one for one in found}
    for name, stay in kept.items():
        if name not in sets:
            raise InputError(f"the model has no units '{name}'{nearest(name, sets)}: the choice is of another model")
        one = sets[name]
        if stay.dtype != torch.bool or tuple(stay.shape) != (one.count,):
            shape = f"{str(stay.dtype).removeprefix('torch.')} {tuple(stay.shape)}"
            raise InputError(
                f"'{name}' has {one.count} {one.kind}: the choice must be bool ({one.count},), not {shape}"
            )
        if one.kind == "channels" and not stay.any():
            raise InputError(f"'{name}' would keep no channel, which blocks the signal: keep at least one")
        if isinstance(one, Layers):
            towers = {tower for tower, stays in zip(one.towers, stay, strict=True) if stays}
            for tower in sorted({*one.towers} - towers):
                raise InputError(f"'{name}' would keep no layer of the tower '{tower}': keep at least one")
    return {name: kept[name].cpu() if name in kept else torch.ones(sets[name].count).bool() for name in sets}


def masked(model: Model, kept: Kept) -> dict[str, Tensor]:
    """The choice as element masks of all prunable layers, bool by parameter name: removed units' inputs are False.

    In removed layers all weights are False, but biases and norms remain, so that the masked model differs from the
    smaller one.
    """
    masks = {name: torch.ones(layer.weight.shape, dtype=torch.bool) for name, layer in model.prunable_layers().items()}
    found = [*units(model), *layers(model)]
    stays = checked(found, kept)
    for one in found:
        if isinstance(one, Units):
            masks[one.consumer] &= one.over_inputs(stays[one.name], masks[one.consumer].shape)
        else:
            gone = tuple(f"{path}.{n}." for path in one.lists for n in range(one.count) if not stays[one.name][n])
            for name in masks:
                masks[name] &= not name.startswith(gone)
    return masks


def kept_units(model: Model, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Which units some weight still reads under element masks (bool by parameter name), of all sets.

    A layer without a mask reads all. For what `masked` made this is the choice that it was made of.
    """
    return readers_left(units(model), masks)


def readers_left(found: Iterable[Units], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`kept_units`, of these sets."""
    return {
        one.name: one.by_unit(masks[one.consumer]).any(dim=1).cpu()
        if one.consumer in masks
        else torch.ones(one.count, dtype=torch.bool)
        for one in found
    }
