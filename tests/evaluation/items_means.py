"""Read an items.json as somebody would who knows its format alone, and take the means."""

from __future__ import annotations

import json
import statistics
from pathlib import Path


def means(path: Path) -> dict[str, dict[str, float]]:
    """100 times the mean score, by group and metric; the file must be in the format."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert list(content) == ["format", "groups"] and content["format"] == 2 and content["groups"]
    found: dict[str, dict[str, float]] = {}
    for name, group in content["groups"].items():
        assert list(group) in (["ids", "scores"], ["ids", "pictures", "scores"])
        assert len(group.get("pictures", group["ids"])) == len(group["ids"])
        assert len(set(group["ids"])) == len(group["ids"]) > 0
        assert len(set(map(type, group["ids"]))) == 1 and isinstance(group["ids"][0], int | str)
        for scores in group["scores"].values():
            assert len(scores) == len(group["ids"])
            assert all(isinstance(score, float) for score in scores)
        found[name] = {metric: 100 * statistics.fmean(scores) for metric, scores in group["scores"].items()}
    return found
