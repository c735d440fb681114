"""Choose the groups to keep from a table of errors: a share of each kind, or as many as a target allows.

A share keeps exactly round(share x n) groups of a kind, those with the largest errors; ties are broken by position. For
a target, groups of all kinds are removed in the order of error per saved parameter, until the smaller model, which is
measured, meets the target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from console.errors import InputError, nearest
from console.words import counted
from models.base import Model
from models.parts import Layers, Units, all_sets, named_tensors
from models.surgery import cut
from shrinking.errors import Errors, narrowed, towers_of

KINDS = ("heads", "neurons", "channels", "layers")


class Candidate(NamedTuple):
    """A group that may be removed. number: of the group in its set. saves: number of parameters that it has."""

    name: str
    number: int
    error: float
    tower: str
    kind: str
    saves: int


@dataclass(frozen=True)
class Limits:
    """Limits of a choice. towers: modalities (empty: all). protect: substrings of names that are never pruned.

    round: widths of hidden layers and convolutions become multiples of it, since other widths are slow on hardware.
    """

    towers: tuple[str, ...] = ()
    protect: tuple[str, ...] = ()
    round: int = 1


def candidates(model: Model, errors: Errors, limits: Limits) -> list[Candidate]:
    """All groups within the limits, in the order of the model.

    InputError when a tower or protected name matches none of them, or nothing can be removed.
    """
    errors.check_fits(model)
    tensors = named_tensors(model)
    found: list[Candidate] = []
    towers, names = set(), []
    for one in all_sets(model):
        names.append(one.name)
        for number, unit in _first_of_groups(errors.groups.get(one.name)):
            tower = towers_of(model, one)[unit]
            towers.add(tower)
            if (limits.towers and tower not in limits.towers) or any(part in one.name for part in limits.protect):
                continue
            saves = _saves(one, unit, tensors) * int((errors.groups[one.name] == number).sum())
            found.append(Candidate(one.name, number, float(errors.errors[one.name][number]), tower, one.kind, saves))
    for tower in limits.towers:
        if tower not in towers:
            has = ", ".join(sorted(towers))
            raise InputError(f"there are no errors of a tower '{tower}'{nearest(tower, towers)}: there are of {has}")
    for part in limits.protect:
        if not any(part in name for name in names):
            raise InputError(f"--protect: '{part}' is in no name of a removable part, such as {names[0]}")
    if not found:
        raise InputError("nothing can be removed: protect less, or choose more towers")
    return found


def _first_of_groups(groups: Tensor | None) -> Iterator[tuple[int, int]]:
    """Number of each group, and one unit of it."""
    for number in range(0 if groups is None else int(groups.max()) + 1):
        yield number, int((groups == number).nonzero()[0])


def _saves(one: Units | Layers, unit: int, tensors: Mapping[str, Tensor]) -> int:
    """Parameters that the removal of a unit, or of a layer, saves."""
    if isinstance(one, Layers):
        return sum(t.numel() for n, t in tensors.items() if n.startswith(f"{one.name}.{unit}."))
    return sum(tensors[at.tensor].numel() // one.count for at in one.slices)


def by_shares(
    model: Model, errors: Errors, shares: Mapping[str, float], limits: Limits, scope: str = "global"
) -> dict[str, Tensor]:
    """Keep a share of the groups of each kind (KINDS); kinds without a share are not pruned.

    scope: `global` compares all groups of a kind in a tower, `layer` those of each set. InputError for shares outside
    of 0 < share <= 1, and where all are 1.
    """
    for kind, share in shares.items():
        if kind not in KINDS:
            raise InputError(f"there are no {kind} to keep{nearest(kind, KINDS)}: shares are of {', '.join(KINDS)}")
        if not 0 < share <= 1:
            raise InputError(f"a share of {kind} to keep is more than 0 and at most 1, not {share:g}")
    if all(share == 1 for share in shares.values()):
        raise InputError("all shares to keep are 1, so nothing would be removed: lower at least one")
    pools: dict[tuple[str, str], list[Candidate]] = {}
    for one in candidates(model, errors, limits):
        if shares.get(one.kind, 1) < 1:
            together = one.name if scope == "layer" and one.kind != "layers" else one.kind
            pools.setdefault((one.tower, together), []).append(one)
    if not pools:
        wanted = " or ".join(kind for kind, share in shares.items() if share < 1)
        raise InputError(f"there are no errors of {wanted}: the model has none that can be removed, or see --kinds")
    gone: list[Candidate] = []
    for pool in pools.values():
        least = 1 if pool[0].kind == "layers" else 0
        stays = max(least, round(shares[pool[0].kind] * len(pool)))
        gone += sorted(pool, key=lambda one: one.error)[: len(pool) - stays]
    return _without(model, errors, gone, limits)


def to_target(
    model: Model,
    errors: Errors,
    measure: Callable[[Model], float],
    target: float,
    limits: Limits,
    kinds: tuple[str, ...] = ("heads", "neurons", "channels"),
) -> dict[str, Tensor]:
    """Keep as many groups as possible such that `measure` of the smaller model is at most the target.

    measure: parameters, FLOPs or milliseconds. InputError for a target that the smallest model misses, or that the
    dense model already meets.
    """
    if not target > 0:
        raise InputError(f"a target is above 0, not {target:g}")
    order = [one for one in candidates(model, errors, limits) if one.kind in kinds]
    order.sort(key=lambda one: one.error / max(1, one.saves))

    def after(count: int) -> float:
        return measure(cut(model, _without(model, errors, order[:count], limits)))

    whole, least = measure(model), after(len(order))
    if whole <= target:
        raise InputError(f"the target of {target:,.12g} is already met: the dense model has {whole:,.12g}")
    if least > target:
        raise InputError(
            f"the target of {target:,.12g} cannot be reached: without all {counted(len(order), 'group')} that can be "
            f"removed, the model still has {least:,.12g} of {whole:,.12g}; choose more towers, protect less, or "
            "remove layers first"
        )
    few, enough = 0, len(order)  # bisection, since each measurement cuts a whole model
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if after(middle) <= target else (middle, enough)
    return _without(model, errors, order[:enough], limits)


def _without(model: Model, errors: Errors, gone: list[Candidate], limits: Limits) -> dict[str, Tensor]:
    """The units kept after removing these groups: widths are rounded, and each convolution keeps a channel."""
    kept: dict[str, Tensor] = {}
    for one in gone:
        kept.setdefault(one.name, torch.ones(len(errors.groups[one.name]), dtype=torch.bool))
        kept[one.name][errors.groups[one.name] == one.number] = False
    kinds = {one.name: one.kind for one in gone}
    for name, stays in kept.items():
        if kinds[name] in ("neurons", "channels"):
            groups, worth = errors.groups[name].tolist(), errors.errors[name].tolist()
            # Rounding removes or restores single units, in the order of their groups' errors.
            ranks = sorted(range(len(groups)), key=lambda unit: (-worth[groups[unit]], groups[unit], unit))
            least = int(kinds[name] == "channels")
            width = rounded(max(least, int(stays.sum())), limits.round, len(groups))
            kept[name] = torch.zeros_like(stays)
            kept[name][ranks[:width]] = True
    return kept


def rounded(width: int, multiple: int, whole: int) -> int:
    """The nearest multiple of `narrowed(multiple, whole)`, ties down; 0 stays 0, and the full width is allowed."""
    multiple = narrowed(multiple, whole)
    if width in (0, whole):
        return width
    below = width // multiple * multiple
    above = min(below + multiple, whole)
    return above if below == 0 or above - width < width - below else below
