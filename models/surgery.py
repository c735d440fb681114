"""Cut units out of a model: the smaller model's outputs equal those under `models.parts.masked`.

One `index_select` an axis of each tensor, and shorter lists of layers. Shared tensors are cut once and stay shared,
since the copy is made with the smaller tensors in place of the originals.
"""

from __future__ import annotations

import copy
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.base import Model
from models.layers import is_conv1d
from models.parts import Kept, Layers, Units, all_sets, checked, named_tensors
from models.plans import Plan

ModelT = TypeVar("ModelT", bound=Model)


@torch.no_grad()
def cut(model: ModelT, kept: Kept) -> ModelT:
    """A copy of the model without the units and layers that `kept` (models/parts.py) leaves out.

    The model is unchanged. The copy keeps types, devices (also meta), requires_grad and modes. Layers are renumbered;
    `plan` of the copy has the original numbers, also of a model that was cut before. InputError for a choice that does
    not fit.
    """
    found = all_sets(model)
    stays = checked(found, kept)
    tensors = named_tensors(model)
    entries: dict[int, dict[int, Tensor]] = {}  # id of a tensor -> axis -> numbers of the entries that stay
    whole: dict[int, Tensor] = {}
    for one in found:
        for at in one.slices if isinstance(one, Units) and not stays[one.name].all() else ():
            tensor = tensors[at.tensor]
            whole[id(tensor)] = tensor
            entries.setdefault(id(tensor), {})[at.axis] = at.entries(stays[one.name]).nonzero()[:, 0]
    # deepcopy uses the tensors in its memo as copies, under every name.
    memo: dict[int, object] = {key: _selected(whole[key], axes) for key, axes in entries.items()}
    smaller = {id(tensor) for tensor in memo.values()}
    small = copy.deepcopy(model, memo)
    for part in small.inner.modules():
        if any(id(tensor) in smaller for tensor in (*part._parameters.values(), *part._buffers.values())):
            _update_sizes(part)
    for one in found:
        for path, each in one.attributes if isinstance(one, Units) else ():
            _set(small.inner, path, int(stays[one.name].sum()) * each)
    for one in found:
        if isinstance(one, Layers) and not stays[one.name].all():
            _without(small, one, stays[one.name].nonzero()[:, 0].tolist())
    small.plan = Plan.of(found, stays, model.plan)
    if small.load_report is not None:
        small.load_report.files = []  # identified by its tensors, which are in no file yet
    return small


@torch.no_grad()
def with_zeros(whole: Model, kept: Kept, small: Model) -> None:
    """The reverse of `cut`: fill the whole model with the smaller one's weights, and zeros where units were removed.

    Its outputs are then the smaller one's. ValueError where layers were removed, which zeros cannot replace.
    """
    found = all_sets(whole)
    stays = checked(found, kept)
    ours, theirs = named_tensors(whole), named_tensors(small)
    if ours.keys() != theirs.keys():
        raise ValueError("layers were removed")
    masks = {name: [torch.ones(size, dtype=torch.bool) for size in tensor.shape] for name, tensor in ours.items()}
    for one in found:
        for at in one.slices if isinstance(one, Units) else ():
            masks[at.tensor][at.axis] = at.entries(stays[one.name])
    for name in dict.fromkeys(at.tensor for one in found if isinstance(one, Units) for at in one.slices):
        ours[name].zero_()
    done: set[int] = set()
    for name, tensor in ours.items():
        if id(tensor) not in done:  # of a shared tensor the first name is the one that was cut
            at = torch.meshgrid(*(mask.nonzero()[:, 0] for mask in masks[name]), indexing="ij") if masks[name] else ()
            tensor[at] = theirs[name]
        done.add(id(tensor))


def _without(model: Model, row: Layers, kept: list[int]) -> None:
    """Leave the layers of these numbers, in place."""
    for path in row.lists:
        whole = model.inner.get_submodule(path)
        left = [whole[number] for number in kept]
        _set(model.inner, path, nn.Sequential(*left) if isinstance(whole, nn.Sequential) else nn.ModuleList(left))
        model.inner.get_submodule(path).train(whole.training)
        for number, layer in enumerate(left):
            for part in layer.modules():
                for name in row.numbers:
                    if isinstance(getattr(part, name, None), int):
                        setattr(part, name, number)
        model.layers_removed(path, kept)
    for path in row.counts:
        _set(model.inner, path, len(kept))


def _set(module: nn.Module, path: str, value: object) -> None:
    """An attribute, or a module in the place of another."""
    owner, _, name = path.rpartition(".")
    setattr(attrgetter(owner)(module) if owner else module, name, value)


def _selected(tensor: Tensor, axes: dict[int, Tensor]) -> Tensor:
    """The entries of these numbers along each axis, as another parameter or buffer."""
    part = tensor.detach()
    for axis, numbers in axes.items():
        part = part.index_select(axis, numbers.to(part.device))
    return nn.Parameter(part, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part


def _update_sizes(part: nn.Module) -> None:
    """Set a layer's size attributes to those of its tensors."""
    if isinstance(part, nn.Linear):
        part.out_features, part.in_features = part.weight.shape
    elif isinstance(part, nn.Conv2d):
        part.out_channels, part.in_channels = part.weight.shape[:2]
    elif isinstance(part, _BatchNorm):
        part.num_features = len(next(t for t in (part.weight, part.running_mean) if t is not None))
    elif is_conv1d(part):
        part.nx, part.nf = part.weight.shape
