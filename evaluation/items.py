"""items.json: the scores of single test items beside a run's results, so that two runs can be compared item by item.

{"format": 1, "groups": {"text": {"ids": [0, 1], "scores": {"img_r1": [1.0, 0.0], ...}}, "image": {...}}}
A metric has the name that it has in the results, nested keys joined by spaces, and is 100 times the mean of its
scores, up to rounding. The same ids in two runs of one task and data set are the same test items. Where all items are
of one kind their group is `items`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from console.errors import InputError
from storage.atomic import write_text

FORMAT = 1
FILE = "items.json"

RECALLS = (1, 5, 10)
"""Places among which a right answer counts, as items have them and as mean recalls are made of."""


@dataclass(frozen=True)
class Items:
    """ids: numbers of test items, each once. scores: by metric, one for each id."""

    ids: list[int]
    scores: dict[str, list[float]]

    def __post_init__(self) -> None:
        assert len(set(self.ids)) == len(self.ids), "an item is there twice"
        for metric, scores in self.scores.items():
            assert len(scores) == len(self.ids), f"{metric} has {len(scores)} scores for {len(self.ids)} items"


Groups = dict[str, Items]
"""Items by their kind."""


def one_group(scores: Mapping[str, Mapping[int, float]]) -> Groups:
    """The group `items` of scores by metric and id, in the order of the first metric; no group without a metric."""
    if not scores:
        return {}
    ids = list(next(iter(scores.values())))
    return {"items": Items(ids, {metric: [of[number] for number in ids] for metric, of in scores.items()})}


def write_items(path: Path | str, groups: Groups) -> None:
    """Write groups to `path`, whole or not at all; without any, what an earlier run left there goes."""
    path = Path(path)
    if not groups:
        path.unlink(missing_ok=True)
        return
    content = {"format": FORMAT, "groups": {name: asdict(items) for name, items in groups.items()}}
    write_text(path, json.dumps(content, separators=(",", ":")) + "\n")


def read_items(path: Path) -> Groups:
    """What `write_items` wrote; InputError where it is not of the form above."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as scores of items: remove it, or collect the run again") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path} is of another format than {FORMAT}: collect the run again with this version")
    try:
        return {str(name): _checked(**group) for name, group in found["groups"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no whole file of scores of items: collect the run again") from error


def _checked(ids: list[int], scores: dict[str, list[float]]) -> Items:
    """ValueError unless each metric has a number for each item, and each item is there once."""
    if len(set(ids)) != len(ids) or any(len(values) != len(ids) for values in scores.values()):
        raise ValueError("items and scores do not go together")
    return Items(ids, {metric: [float(value) for value in values] for metric, values in scores.items()})


def items_files(output: Path, labels: Sequence[str]) -> list[Path]:
    """The files beside `output` for runs with these labels: items.json for one, items_<label>.json for several."""
    if len(labels) == 1:
        return [output.with_name(FILE)]
    twice = {label for label in labels if labels.count(label) > 1}
    names = [f"{number}_{label}" if label in twice else label for number, label in enumerate(labels)]
    return [output.with_name(f"items_{name}.json") for name in names]
