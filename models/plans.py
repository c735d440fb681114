"""A plan: the kept units and layers of a model, by their original numbers, which stay valid after further cuts.

In files, numbers that follow one another are written as [first, last + 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from console.errors import InputError, nearest
from models.parts import Kept, Layers, Units
from storage.hashing import hash_json


@dataclass(frozen=True)
class Stay:
    """What stays of a set of units or layers: `count` there were, `kept` are the numbers of those that stay."""

    kind: str
    count: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The kept units of each cut set, as (name, Stay); sets that are not named are whole.

    Units inside of removed layers have no entry.
    """

    stays: tuple[tuple[str, Stay], ...] = ()

    @classmethod
    def of(cls, found: Iterable[Units | Layers], kept: Kept, before: Plan | None = None) -> Plan:
        """The plan of a choice among the sets of a model. before: the plan by which that model itself was cut.

        Numbers are those of the model before any cut.
        """
        found = list(found)
        stays = dict(before.stays) if before else {}
        first_names = first_names_of([one for one in found if isinstance(one, Layers)], stays)
        for one in sorted(found, key=lambda one: isinstance(one, Layers)):  # layers last: they take their units along
            if one.name not in kept or kept[one.name].all():
                continue
            name = first_names(one.name)
            first = stays.get(name) or Stay(one.kind, one.count, tuple(range(one.count)))
            numbers = tuple(first.kept[i] for i in kept[one.name].nonzero()[:, 0].tolist())
            stays[name] = Stay(one.kind, first.count, numbers)
            if isinstance(one, Layers):
                gone = _prefixes(one, stays[name])
                stays = {name: stay for name, stay in stays.items() if not name.startswith(gone)}
        return cls(tuple(sorted(stays.items())))

    def kept(self, found: Iterable[Units | Layers], before: Plan | None = None) -> dict[str, Tensor]:
        """The choice of this plan among the sets of the first model, or of a model that was cut by `before`.

        InputError where the plan is of another model, or keeps a unit that was removed.
        """
        found = list(found)
        earlier, wanted = dict(before.stays) if before else {}, dict(self.stays)
        first_names = first_names_of([one for one in found if isinstance(one, Layers)], earlier)
        names = {first_names(one.name): one for one in found}

        def prefixes(stays: Mapping[str, Stay]) -> tuple[str, ...]:
            rows = [(one, stays[name]) for name, one in names.items() if isinstance(one, Layers) and name in stays]
            return tuple(prefix for row, stay in rows for prefix in _prefixes(row, stay))

        lost, gone = prefixes(earlier), prefixes(wanted)
        for name, stay in self.stays:
            if name.startswith(lost):
                continue  # refused below, with its layer
            if name not in names and name not in earlier:
                raise InputError(
                    f"the plan is of another model: there is no '{name}' in this one{nearest(name, names)}"
                )
            first = earlier.get(name) or Stay(names[name].kind, names[name].count, tuple(range(names[name].count)))
            if (first.kind, first.count) != (stay.kind, stay.count):
                has = f"{first.count} {first.kind}"
                raise InputError(
                    f"the plan is of another model: '{name}' has {has} here, and {stay.count} {stay.kind} there"
                )
        chosen = {}
        for name, one in names.items():
            if name.startswith(gone):
                continue
            here = earlier[name].kept if name in earlier else tuple(range(one.count))
            stays = wanted[name].kept if name in wanted else here if name not in earlier else range(earlier[name].count)
            if not set(stays) <= set(here):
                raise InputError(
                    f"the plan keeps {one.kind} of '{name}' that were removed before: make a plan for this model"
                )
            if len(stays) < len(here):
                chosen[one.name] = torch.tensor([number in set(stays) for number in here])
        return chosen

    def to_json(self) -> dict[str, Any]:
        """As a file has it: name -> kind, count, numbers."""
        return {n: {"kind": s.kind, "count": s.count, "kept": in_ranges(s.kept)} for n, s in self.stays}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str) -> Plan:
        """Of a file's content; InputError naming `where` for one that is damaged."""
        stays = {}
        try:
            for name, found in content.items():
                if any(part[-1] > found["count"] for part in found["kept"] if isinstance(part, list)):
                    raise ValueError("a range beyond the count")
                kept = tuple(n for part in found["kept"] for n in _numbers(part))
                in_order = sorted(set(kept)) == list(kept) and all(0 <= n < found["count"] for n in kept)
                stays[name] = Stay(found["kind"], found["count"], kept)
                if not in_order:
                    raise ValueError("numbers out of order or beyond the count")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{where} is damaged: its units cannot be read ({error!r})") from error
        return cls(tuple(sorted(stays.items())))


def plan_identity(plan: Plan | None) -> dict[str, str]:
    """Fields that identify a smaller model in its masks; none for a whole model."""
    return {"plan": hash_json(plan.to_json())} if plan else {}


def check_units(source: Mapping[str, Any], plan: Plan | None) -> None:
    """InputError where a mask, by its source, was made for other units of a smaller model; shapes may be equal."""
    here = plan_identity(plan)
    if here and source.get("plan", here["plan"]) != here["plan"]:
        raise InputError(f"the mask was made for other units, those of {source.get('model')}: make another")


def _prefixes(row: Layers, stay: Stay) -> tuple[str, ...]:
    """Prefixes of the names in removed layers, by their original numbers."""
    gone = sorted(set(range(stay.count)) - set(stay.kept))
    return tuple(f"{path}.{number}." for path in row.lists for number in gone)


def first_names_of(rows: Iterable[Layers], stays: Mapping[str, Stay]) -> Callable[[str], str]:
    """Name of a set or tensor -> its name before any layer was removed.

    rows: of layers; stays: of the plan that made the model.
    """
    numbers = {path: stays[row.name].kept for row in rows if row.name in stays for path in row.lists}

    def first_name(name: str) -> str:
        for path, kept in numbers.items():
            if name.startswith(f"{path}."):
                number, _, rest = name.removeprefix(f"{path}.").partition(".")
                return f"{path}.{kept[int(number)]}.{rest}"
        return name

    return first_name


def _numbers(part: int | list[int]) -> Iterable[int]:
    if not isinstance(part, list):
        return [part]
    first, behind = part
    return range(first, behind)


def in_ranges(numbers: Iterable[int]) -> list[int | list[int]]:
    """Ascending numbers, three or more that follow one another as [first, last + 1]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, number + 1])
    found: list[int | list[int]] = []
    for first, behind in runs:
        found += [[first, behind]] if behind - first > 2 else list(range(first, behind))
    return found
