"""items.json: the scores of single test items, next to a run's results, for paired comparisons of two runs.

{"format": 2, "groups": {"text": {"ids": [0, 1], "pictures": [0, 0], "scores": {"img_r1": [1.0, 0.0], ...}},
                         "image": {"ids": [0], "scores": {...}}}}
A metric has its name in the results, nested keys joined by spaces; there it is 100 times the mean of these scores, up
to rounding. Equal ids in two runs of one task and data set are the same test item. If all items are of one kind, their
group is `items`. `pictures` has the picture of each item; items of one picture, also in different groups, are not
independent. Without it, each item is a picture of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.errors import InputError
from data.records import Id
from storage.atomic import write_text

FORMAT = 2
FILE = "items.json"

RECALLS = (1, 5, 10)
"""The k of recall@k."""


@dataclass(frozen=True)
class Items:
    """ids: of test items, each once. pictures: the picture of each item. scores: by metric, the score of each item."""

    ids: list[Id]
    pictures: list[Id]
    scores: dict[str, list[float]]

    def __post_init__(self) -> None:
        assert len(set(self.ids)) == len(self.ids), "an item occurs twice"
        assert len(self.pictures) == len(self.ids), "not every item has a picture"
        for metric, scores in self.scores.items():
            assert len(scores) == len(self.ids), f"{metric} has {len(scores)} scores for {len(self.ids)} items"


Groups = dict[str, Items]
"""Items by their kind."""


def one_group(scores: Mapping[str, Mapping[Id, float]], picture_of: Mapping[Id, Id] | None) -> Groups:
    """The group `items` of scores by metric and id, in the order of the first metric; no group without a metric.

    picture_of: the picture of each id; None if each item is a picture of its own.
    """
    if not scores:
        return {}
    ids = list(next(iter(scores.values())))
    pictures = list(ids) if picture_of is None else [picture_of[number] for number in ids]
    return {"items": Items(ids, pictures, {metric: [of[number] for number in ids] for metric, of in scores.items()})}


def write_items(path: Path | str, groups: Groups) -> None:
    """Write groups to `path` atomically; without any, remove an earlier file."""
    path = Path(path)
    if not groups:
        path.unlink(missing_ok=True)
        return
    content = {"format": FORMAT, "groups": {name: _as_json(items) for name, items in groups.items()}}
    write_text(path, json.dumps(content, separators=(",", ":")) + "\n")


def groups_of(content: Any, where: str) -> Groups:
    """The groups from the content of a file by `write_items`; InputError if it has another form."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{where}: scores of items are of another format than {FORMAT}: run it again")
    try:
        return {str(name): _checked(**group) for name, group in content["groups"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: scores of items are incomplete: run it again") from error


def _as_json(items: Items) -> dict[str, Any]:
    own = {} if items.pictures == items.ids else {"pictures": items.pictures}
    return {"ids": items.ids, **own, "scores": items.scores}


def _checked(ids: list[Id], scores: dict[str, list[float]], pictures: list[Id] | None = None) -> Items:
    """ValueError unless each metric has a number for each item, and each item occurs once."""
    if len(set(ids)) != len(ids) or any(len(values) != len(ids) for values in (*scores.values(), pictures or ids)):
        raise ValueError("items, pictures and scores do not go together")
    return Items(
        ids, pictures or list(ids), {metric: [float(value) for value in values] for metric, values in scores.items()}
    )


def items_files(output: Path, labels: Sequence[str]) -> list[Path]:
    """The files next to `output` for runs with these labels: items.json for one, items_<label>.json for several."""
    if len(labels) == 1:
        return [output.with_name(FILE)]
    twice = {label for label in labels if labels.count(label) > 1}
    names = [f"{number}_{label}" if label in twice else label for number, label in enumerate(labels)]
    return [output.with_name(f"items_{name}.json") for name in names]
