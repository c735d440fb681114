"""A table of errors: the importance of each head, group of neurons or channels, and layer, for plans of any size.

Neurons and channels are ordered by importance and then split into groups of equal size, the most important first, since
a group in stored order mixes important and unimportant neurons. Each head and each layer is its own group.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from console.errors import InputError, nearest
from models.base import Model
from models.parts import Layers, Units, all_sets
from storage.tensors import check_seal, parse_metadata, read_safetensors, sealed, write_safetensors

FORMAT = "vlm-pruning-errors-1"

Values = dict[str, Tensor]
"""Name of a set -> float64 [count], larger is more important."""


@dataclass(frozen=True)
class Errors:
    """errors: name of a set of units or layers -> float64 [groups], larger is more important.

    groups: name -> int64 [count], the group of each unit (-1: not measured, always kept). about: model, criterion, seed
    and other settings.
    """

    errors: Mapping[str, Tensor]
    groups: Mapping[str, Tensor]
    about: Mapping[str, Any]

    @classmethod
    def of(cls, model: Model, values: Values, size: int, about: Mapping[str, Any]) -> Errors:
        """From the importance of each unit (NaN: unknown): a group's error is its units' mean. size: of groups."""
        groups = groups_of(model, values, size)
        errors = {name: means(values[name], own) for name, own in groups.items()}
        return cls(errors, groups, dict(about))

    def check_fits(self, model: Model) -> None:
        """InputError unless the table is of this model."""
        counts = {one.name: one.count for one in all_sets(model)}
        for name, groups in self.groups.items():
            if counts.get(name) != len(groups):
                here = f"{counts[name]} there" if name in counts else "none there"
                raise InputError(
                    f"the errors are of another model, {self.about.get('model')}: they have {len(groups)} units in "
                    f"'{name}', and there are {here}"
                )

    def save(self, path: Path) -> None:
        """Write the table, atomically."""
        tensors = {f"error.{name}": tensor for name, tensor in self.errors.items()}
        tensors |= {f"group.{name}": tensor for name, tensor in self.groups.items()}
        write_safetensors(path, tensors, sealed(tensors, {"format": FORMAT, "about": json.dumps(self.about)}))

    @classmethod
    def load(cls, path: Path | str) -> Errors:
        """Read a table; InputError if the file is not one, or is damaged."""
        tensors, metadata = read_safetensors(path)
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path} is not a table of errors: give a file that shrink.py measure wrote")
        check_seal(path, tensors, metadata, "errors")
        about = parse_metadata(path, metadata, "about", ("model", "criterion", "seed"))
        parts = {kind: {} for kind in ("error", "group")}
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            parts[kind][name] = tensor
        return cls(parts["error"], parts["group"], about)


def towers_of(model: Model, one: Units | Layers) -> Sequence[str]:
    """The tower of each unit of a set."""
    return one.towers if isinstance(one, Layers) else [model.modality_of(one.consumer)] * one.count


def restricted(model: Model, values: Values, kinds: Sequence[str] | None, tower: str) -> Values:
    """The values of some kinds of parts (None: all) in a tower (`both`: all); NaN for layers of other towers.

    InputError for kinds and towers that the model does not have.
    """
    found: Values = {}
    has: dict[str, set[str]] = {"kinds": set(), "tower": set()}
    for one in all_sets(model):
        towers = towers_of(model, one)
        inside = torch.tensor([tower in ("both", name) for name in towers])
        has["kinds"].add(one.kind)
        has["tower"].update(towers)
        if one.name in values and (kinds is None or one.kind in kinds) and inside.any():
            found[one.name] = values[one.name].where(inside, torch.nan) if not inside.all() else values[one.name]
    for option, names in (("kinds", kinds or ()), ("tower", () if tower == "both" else (tower,))):
        for name in (name for name in names if name not in has[option]):
            choices = ", ".join(sorted(has[option]))
            raise InputError(
                f"--{option}: the model has no '{name}'{nearest(name, has[option])}: choose from {choices}"
            )
    return found


def groups_of(model: Model, values: Values, size: int) -> dict[str, Tensor]:
    """The group of each unit in all sets with values; -1 for units whose value is NaN."""
    groups = {}
    for one in all_sets(model):
        known = ~values[one.name].isnan() if one.name in values else torch.zeros(1, dtype=torch.bool)
        if known.any():
            groups[one.name] = torch.full((one.count,), -1)
            own = narrowed(size, one.count) if one.kind in ("neurons", "channels") else 1
            groups[one.name][known] = ordered_groups(values[one.name][known], own)
    return groups


def narrowed(size: int, whole: int) -> int:
    """The size of groups in a layer of `whole` units: halved until there are four groups, for narrow layers."""
    while size > 1 and 4 * size > whole:
        size //= 2
    return size


def ordered_groups(values: Tensor, size: int) -> Tensor:
    """The group of each unit, int64 [count]: the best `size` units are group 0, and so on; ties by position.

    Groups of one are in stored order.
    """
    if size == 1:
        return torch.arange(len(values))
    ranks = torch.empty(len(values), dtype=torch.long)
    ranks[values.argsort(descending=True, stable=True)] = torch.arange(len(values))
    return ranks // size


def means(values: Tensor, groups: Tensor) -> Tensor:
    """Mean of the values [count] in each group, float64 [groups]."""
    values, groups = values[groups >= 0], groups[groups >= 0]
    sums = torch.zeros(int(groups.max()) + 1, dtype=torch.float64).index_add_(0, groups, values.double())
    return sums / groups.bincount()
