"""Measure fewer parts: groups of equal rank in all layers at once, or only parts near the cut by Taylor scores.

`--ffn_scope all` measures neurons as a reimplementation of MoPE-CLIP does: group q of all layers of a tower is removed
together, and each of these groups has that error; widths become uniform. `--screen SHARE` measures the heads and groups
near the cut of Taylor's order. The others keep Taylor's order, above or below all measured parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from models.base import Model
    from shrinking.mope import Removal


def joined(model: Model, parts: Sequence[Removal]) -> list[Removal]:
    """Groups of neurons of equal rank in all layers of a tower as one part each, behind all others."""
    alone, ranks, seen = [], {}, {}
    for part in parts:
        rank = seen[part.name] = seen.get(part.name, -1) + 1
        if part.one.kind == "neurons":
            ranks.setdefault((model.modality_of(part.one.consumer), rank), []).append(part)
        else:
            alone.append(part)
    return alone + [
        replace(
            together[0],
            changed=frozenset().union(*(part.changed for part in together)),
            columns=tuple(column for part in together for column in part.columns),
            members=tuple(together),
        )
        for together in ranks.values()
    ]


@dataclass(frozen=True)
class Screen:
    """The choice of parts to measure. values: Taylor scores, name of a set -> float64 [count].

    share: of heads and groups to measure. keep: share that will be kept; Taylor scores near that cut decide most.
    """

    values: Mapping[str, Tensor]
    share: float
    keep: float = 0.5

    def uncertain(self, model: Model, parts: Sequence[Removal]) -> list[bool]:
        """Whether each part is measured. Layers always are: Taylor scores predict them badly, and they are few."""
        measured = [part.one.kind == "layers" for part in parts]
        for order in self._pools(model, parts):
            count = min(len(order), max(1, round(self.share * len(order))))
            # Only near the cut can a wrong order change what is kept.
            first = round((1 - self.keep) * len(order) - count / 2)
            first = min(max(first, 0), len(order) - count)
            for place in order[first : first + count]:
                measured[place] = True
        return measured

    def filled(self, model: Model, parts: Sequence[Removal], found: Sequence[float | None]) -> list[float]:
        """Errors of all parts: measured ones as they are, the others (None) extrapolated in Taylor's order."""
        errors = list(found)
        for order in self._pools(model, parts):
            known = [place for place in order if found[place] is not None]
            values = [found[place] for place in known]
            low, high = min(values), max(values)
            # Steps outside the measured range keep Taylor's order without mixing estimates with measurements.
            step = (high - low) / len(order) or 1.0
            below, above = order[: order.index(known[0])], order[order.index(known[-1]) + 1 :]
            for i, place in enumerate(reversed(below), 1):
                errors[place] = low - step * i
            for i, place in enumerate(above, 1):
                errors[place] = high + step * i
        return errors

    def _pools(self, model: Model, parts: Sequence[Removal]) -> list[list[int]]:
        """Places of the heads or groups of each tower, in Taylor's order."""
        pools: dict[tuple[str, str], list[int]] = {}
        for place, part in enumerate(parts):
            if part.one.kind != "layers":
                pools.setdefault((model.modality_of(part.one.consumer), part.one.kind), []).append(place)
        worth = [
            float(sum(torch.nan_to_num(self.values[one.name][one.group]).sum() for one in part.each)) for part in parts
        ]
        return [sorted(order, key=worth.__getitem__) for order in pools.values()]
