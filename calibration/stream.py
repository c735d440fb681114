"""Calibration as a sequence of units: one batch of one side (general or region) each.

Units are numbered in a fixed order. With several processes, process r of w takes units r, r + w, ...;
sums are then added in the order of units, exactly as one process would, so that the result does not depend on the
number of processes. For the same reason each unit has its own random seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.processes import Group
from console.errors import InputError
from models.base import Batch, Model

Batches = Iterable[dict[str, Batch]]
"""What calibration reads: a re-iterable of {"general": {field: tensor}, "region": {...}}."""


@dataclass(frozen=True)
class Unit:
    """One batch of one side; `index` counts units, `pair` the steps of the data."""

    index: int
    pair: int
    side: str
    batch: Batch


def check_batches(batches: Batches) -> None:
    """InputError for an object that is no series of batches, or a single batch instead of a list."""
    alone = isinstance(batches, Tensor | Mapping) and len(batches) > 0
    if alone or (isinstance(batches, tuple) and any(isinstance(part, Tensor) for part in batches)):
        what = "a dict" if isinstance(batches, Mapping) else f"a {type(batches).__name__}"
        what = f"{what}, which is one batch, not a list of them"
    elif isinstance(batches, Iterable) or hasattr(batches, "units"):
        return
    else:
        what = repr(batches)
    raise InputError(f"the batches are {what}: give a list of dicts, for example [{{'image': tensor}}]")


def stream(
    batches: Batches,
    sides: tuple[str, ...],
    group: Group,
    start: int = 0,
    stop: int | None = None,
    wrap: bool = True,
) -> Iterator[Unit]:
    """The units of this process for the pairs start <= pair < stop; without `stop`, once through the data.

    With `stop` beyond the end, the data starts again if `wrap`. Batches with a method `units` (data.calibration) load
    only the units of this process.
    """
    if hasattr(batches, "units"):
        for pair, side, batch in batches.units(sides, group.rank, group.size, start, stop, wrap):
            yield Unit(pair * len(sides) + sides.index(side), pair, side, batch)
        return
    for pair, loaded in _pairs(batches, start, stop, wrap):
        of_sides = _by_side(loaded, sides, pair)
        for position, side in enumerate(sides):
            index = pair * len(sides) + position
            if index % group.size == group.rank:
                yield Unit(index, pair, side, fields(of_sides[side]))


def _by_side(loaded: Any, sides: tuple[str, ...], pair: int) -> Mapping[str, Mapping[str, Any]]:
    """A batch of each side; a model with one side may be given its batches as they are."""
    if isinstance(loaded, Mapping) and all(isinstance(loaded.get(side), Mapping) for side in sides):
        return loaded
    if len(sides) > 1:
        have = ", ".join(loaded) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise InputError(
            f"calibration batch {pair} must be a dict with the sides {', '.join(sides)}, but it has: {have}"
        )
    if not isinstance(loaded, Mapping):
        raise InputError(
            f"calibration batch {pair} must be a dict of named tensors, not a {type(loaded).__name__}: give, for "
            "example, {'image': tensor}, and wrap(module, forward=..., loss=...) to use its fields"
        )
    return {sides[0]: loaded}


def fields(batch: Mapping[str, Any]) -> Batch:
    """The fields of a batch as libraries make them: arrays become tensors, None is left out, the rest stays as it is.

    Values other than tensors (numbers, texts, file names) are for the model's own functions only.
    """
    made = {name: _from_array(v) if isinstance(v, np.ndarray) else v for name, v in batch.items()}
    return {name: value for name, value in made.items() if value is not None}


def _from_array(array: np.ndarray) -> Tensor | np.ndarray:
    """A tensor from an array of numbers, of any strides and byte order; other arrays are unchanged."""
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:  # torch has no wider floats
        return array
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _pairs(batches: Batches, start: int, stop: int | None, wrap: bool) -> Iterator[tuple[int, dict[str, Batch]]]:
    pair = 0
    while True:
        before = pair
        for loaded in batches:
            if stop is not None and pair >= stop:
                return
            if pair >= start:
                yield pair, loaded
            pair += 1
        if stop is None or not wrap or pair >= stop:
            return
        if pair == 0:
            raise InputError("the calibration data is empty: give at least one batch")
        if pair == before:
            raise InputError(
                f"the calibration data ends after {pair} of {stop} steps and cannot be read again: give a list instead "
                "of a generator"
            )


def to_device(value: Any, device: torch.device) -> Any:
    """A batch with its tensors on `device`, also those in dicts, lists and tuples within it."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: to_device(one, device) for name, one in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(one, Tensor | Mapping | list | tuple) for one in value):
        return [to_device(one, device) for one in value]
    return value


def check_batch(unit: Unit) -> None:
    """InputError for a batch that cannot be used, naming it and what to do."""
    rows = [value.shape[0] for value in unit.batch.values() if isinstance(value, Tensor) and value.dim()]
    if rows and not any(rows):  # one field may be empty: the boxes of images without objects
        raise InputError(f"{unit.side} batch {unit.pair} is empty: no tensor in it has a row")
    atts = unit.batch.get("text_atts")
    if isinstance(atts, Tensor) and atts.dim() == 2:
        empty = (atts.sum(dim=1) == 0).nonzero().flatten().tolist()
        if empty:
            raise InputError(
                f"{unit.side} batch {unit.pair} has a text of padding only (row {empty[0]}): remove it from the data"
            )


def device_of(model: Model) -> torch.device:
    """Where the model computes."""
    return next(model.parameters()).device if model.streamed is None else model.streamed.device


def lacks_field(unit: Unit, error: KeyError) -> InputError:
    """The error for a field that the model reads and the batch lacks."""
    have = ", ".join(unit.batch)
    return InputError(f"{unit.side} batch {unit.pair} lacks the field {error} (it has: {have})")
