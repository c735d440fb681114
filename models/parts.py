"""What can be removed from a model whole: its heads, neurons and channels, each with all that only it needs.

A set of `Units` is what one attention, one hidden layer or one convolution offers: `count` equal units, which one
`consumer` reads, `block` input features or channels each. Three forms of the same choice:

    units(model)               -> list[Units]; InputError where there are none; `left_whole` says what stays, and why
    kept: {name: bool [count]} -> which units of each set stay; a set that is not named stays whole
    masked(model, kept)        -> {parameter: bool}: a mask over the consumers' columns, for finetuning under a mask
    kept_units(model, masks)   -> kept, back from any element masks: units without a column left are gone
    surgery.cut(model, kept)   -> a smaller model, whose outputs equal the masked one's

A removed unit's rows, biases and normalisation stay in a masked model and do their work: nobody reads it. To remove
a unit is exact for that reason, and to zero its rows would not be.

A model says what it has in `Model.parts` (models/base.py), by the readers of its blocks (models/library/timm_parts.py,
hf_parts.py) or with `units_of`, a line a set; `wrap(module, parts=...)` takes a function for any module:

    wrap(module, parts=lambda m: [units_of(m, "mlp", "neurons", feeds=["mlp.up"], reads="mlp.down")])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from console.errors import InputError, nearest
from models.layers import is_conv1d
from models.library.finding import Skipped, told_skipped

if TYPE_CHECKING:
    from models.base import Model

Kind = Literal["channels", "neurons", "heads"]

Kept = Mapping[str, Tensor]
"""Name of a set of units -> bool [count], True stays."""


@dataclass(frozen=True)
class Slices:
    """Where the units of a set are in a tensor: along `axis`, `repeats` times (fused qkv: 3) count x block entries."""

    tensor: str
    axis: int
    block: int
    repeats: int

    def entries(self, kept: Tensor) -> Tensor:
        """Which entries along the axis stay, bool [repeats x count x block], of kept [count]."""
        return kept.repeat_interleave(self.block).repeat(self.repeats)


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
        """What has the consumer's shape, [count, entries]: a row a unit, of the weights that read it."""
        return weight.movedim(self.axis, 0).reshape(self.count, -1)


def units_of(
    module: nn.Module,
    name: str,
    kind: Kind,
    *,
    feeds: Iterable[str],
    reads: str,
    block: int = 1,
    attributes: Mapping[str, int] | None = None,
) -> Units | Skipped:
    """A set of units; or, where one could not go without a change of the others, its consumer with the reason.

    feeds: paths of the layers and batch norms whose outputs the units are. reads: path of the layer that reads them,
    `block` inputs a unit. attributes: as of `Units`.
    """
    consumer = module.get_submodule(reads)
    axis = 0 if is_conv1d(consumer) else 1
    found: list[Slices] = []
    reason = None if type(consumer) in (nn.Linear, nn.Conv2d) or is_conv1d(consumer) else _unknown(consumer)
    if reason is None:
        inputs = consumer.weight.shape[axis]
        count, rest = divmod(inputs, block)
        if rest:
            reason = f"its {inputs} inputs do not divide into units of {block}"
        elif count == 0:
            reason = "none of the units that it read are left"
        found.append(Slices(f"{reads}.weight", axis, block, 1))
    made = 1 if kind == "channels" else block  # numbers a unit in what makes it: a channel is one, whatever reads it
    for path in (reads, *feeds) if reason is None else ():
        part = module.get_submodule(path)
        if getattr(part, "groups", 1) > 1:
            reason = "a convolution in groups makes or reads them"
        elif path == reads:
            continue
        elif type(part) not in (nn.Linear, nn.Conv2d) and not isinstance(part, _BatchNorm) and not is_conv1d(part):
            reason = f"they come out of {_unknown(part)}"
        else:
            for leaf, tensor in _own_tensors(part):
                axis_out = tensor.dim() - 1 if is_conv1d(part) else 0
                repeats, rest = divmod(tensor.shape[axis_out], count * made)
                if rest or not repeats:
                    reason = f"they are {count} of {made}, and {tensor.shape[axis_out]} outputs make them"
                found.append(Slices(f"{path}.{leaf}", axis_out, made, repeats))
    if reason is not None:
        weight = getattr(consumer, "weight", None)
        return Skipped(f"{reads}.weight", reason, weight.numel() if isinstance(weight, Tensor) else 0)
    counted = tuple((attributes or {}).items())
    return Units(name, kind, count, block, f"{reads}.weight", axis, tuple(found), counted)


def _own_tensors(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Of a layer: all but single numbers, such as the count of batches in a batch norm."""
    for leaf, tensor in (*part._parameters.items(), *part._buffers.items()):
        if tensor is not None and tensor.dim() > 0:
            yield leaf, tensor


def _unknown(part: nn.Module) -> str:
    return f"a {type(part).__name__}, which may not treat each unit by itself"


Reader = Callable[[str, nn.Module], Iterable[Units | Skipped]]
"""Parts of a block: of the path to it, with a dot at the end unless it is the root, and of the root module."""


def read(module: nn.Module, reader_of: Callable[[nn.Module], Reader | None]) -> Iterator[Units | Skipped]:
    """The parts of all blocks in a module that there is a reader for."""
    for path, part in module.named_modules():
        if (reader := reader_of(part)) is not None:
            yield from reader(f"{path}." if path else "", module)


def inventory(model: Model) -> tuple[list[Units], list[Skipped]]:
    """The model's sets of units, each once, and what has to stay whole, with the reasons.

    Modules that share their consumer (encoder and decoder of BLIP), and copies that follow it (of momentum), lose the
    same units: they are one set.
    """
    layers = model.prunable_layers()
    reasons = {skipped.name: skipped.reason for skipped in model.skipped}
    tensors = named_tensors(model)
    found, left = all_sets(model)
    prunable = [one for one in found if one.consumer in layers]
    for one in found:
        if one.consumer not in layers:
            reason = reasons.get(one.consumer, "what reads it is never pruned")
            left.append(Skipped(one.consumer, reason, tensors[one.consumer].numel()))
    reached = {id(tensors[at.tensor]) for one in found for at in one.slices}
    named = {skipped.name for skipped in left}
    for name, layer in layers.items():
        if id(layer.weight) not in reached and name not in named:
            left.append(Skipped(name, "no units are known that it alone makes or reads", layer.weight.numel()))
    return prunable, left


def all_sets(model: Model) -> tuple[list[Units], list[Skipped]]:
    """As `inventory`, of all that can be removed, also where the consumer is never pruned (a head), and no more."""
    layers = model.prunable_layers()
    tensors = named_tensors(model)
    names = {id(tensor): name for name, tensor in reversed(tensors.items())}
    names |= {id(layer.weight): name for name, layer in layers.items()}
    names |= {id(layer.weight): name for name, layer in model.followers().items()}
    sets: dict[str, Units] = {}
    left: list[Skipped] = []
    for part in model.parts():
        if isinstance(part, Skipped):
            left.append(part)
            continue
        consumer = names[id(tensors[part.consumer])]
        sets[consumer] = (
            _joined(sets[consumer], part, tensors) if consumer in sets else replace(part, consumer=consumer)
        )
    return list(sets.values()), left


def units(model: Model) -> list[Units]:
    """All sets of units that can be removed, in the model's order; InputError with the reasons where there are none."""
    found, left = inventory(model)
    if not found:
        why = "; ".join(told_skipped(left)) or "it has no prunable layers"
        raise InputError(
            f"{type(model.inner).__name__} has no heads, neurons or channels that can be removed whole ({why}): name "
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


def checked(found: Iterable[Units], kept: Kept) -> dict[str, Tensor]:
    """`kept` of all sets, on the CPU; InputError for names and shapes that do not fit, and for no channel left."""
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
            raise InputError(f"'{name}' would keep no channel, and nothing would come through: keep one at least")
    return {name: kept[name].cpu() if name in kept else torch.ones(sets[name].count).bool() for name in sets}


def masked(model: Model, kept: Kept) -> dict[str, Tensor]:
    """The choice as element masks of all prunable layers, bool by parameter name: removed units' inputs are False."""
    masks = {name: torch.ones(layer.weight.shape, dtype=torch.bool) for name, layer in model.prunable_layers().items()}
    found = units(model)
    stays = checked(found, kept)
    for one in found:
        masks[one.consumer] &= one.over_inputs(stays[one.name], masks[one.consumer].shape)
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
