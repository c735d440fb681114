"""Scores of single test items, from which it is told whether a difference is more than the choice of the items.

A run may leave `items.json` beside its results:

    {"format": 1, "ids": ["q17", "q18", ...], "scores": {"overall": [1.0, 0.3, ...]}}

ids: one for each test item, each once; the same ids in two runs mean the same items, in whatever order. scores: metric,
named as in the tables of scores (`itc txt_r1` for one within another) -> a score for each id, in the order of the ids,
null where the metric says nothing of the item (a text, of a metric on images). Scores of one metric have one unit,
whichever; higher is better.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from console.errors import InputError

FORMAT = 1


@dataclass(frozen=True)
class Items:
    """ids [n]. scores: metric -> float64 [n], NaN where it says nothing of the item."""

    ids: tuple[str, ...]
    scores: dict[str, np.ndarray]

    def of(self, metric: str) -> dict[str, float]:
        """Item -> score, of those that have one."""
        values = self.scores[metric]
        return {self.ids[i]: float(values[i]) for i in np.flatnonzero(~np.isnan(values))}


def read_items(path: Path) -> Items:
    """Read `items.json`; InputError where it is not of the form above."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as scores of items: remove it, or collect the run again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path} is of another format than {FORMAT}: collect the run again with this version")
    ids, scores = found.get("ids"), found.get("scores")
    if not isinstance(ids, list) or not isinstance(scores, dict):
        raise InputError(f"{path} lacks 'ids' or 'scores': collect the run again")
    names = tuple(map(str, ids))
    if len(set(names)) != len(names):
        raise InputError(f"{path} names an item twice: collect the run again")
    made: dict[str, np.ndarray] = {}
    for metric, values in scores.items():
        if not isinstance(values, list) or len(values) != len(names):
            raise InputError(f"{path} has not one score of '{metric}' for each of its {len(names)} items")
        try:
            made[metric] = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{path} has a score of '{metric}' that is no number") from error
    return Items(names, made)


def items_of(files: list[Path], metric: str, read: Callable[[Path], Items] = read_items) -> dict[str, float]:
    """Item -> its score, mean over runs (seeds). InputError where the runs are not about the same items.

    read: reads a file, or remembers what was in it.
    """
    read_in = [read(file) for file in files]
    found = [items.of(metric) for items in read_in if metric in items.scores]
    if len(found) < len(files) or not all(found):
        raise InputError("the runs left no scores of single test items for the metric")
    if any(other.keys() != found[0].keys() for other in found):
        raise InputError("the runs were tested on different items")
    return {item: sum(one[item] for one in found) / len(found) for item in found[0]}
