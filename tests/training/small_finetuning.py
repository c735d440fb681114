"""Finetuning runs of seconds: a mini world of some thirty pictures, and the minis' configurations on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from configs.schema import task_file
from data.miniworld import ensure

EXTRA = {"captioning": ["--skip_eval"]}


def small_world(root: Path) -> Path:
    """The world's folder, drawn below `root`."""
    for part in ("itr", "ic", "vqa"):
        world = ensure(part, root, workers=1, show=False, scale=0.008)
    return world


def placed(value: Any, world: Path) -> Any:
    """A configuration whose files lie in the small world."""
    if isinstance(value, dict):
        return {
            ("root" if key == "miniworld" else key): (str(world) if key == "miniworld" else placed(below, world))
            for key, below in value.items()
        }
    return value


def flowers(world: Path) -> dict[str, Any]:
    """The mini DINO's configuration of classification in the small world, with the data set that lies there."""
    settings = placed(yaml.safe_load(task_file("dino-mini", "image_classification").read_text()), world)
    return settings | {"datasets": {"flowers102": settings["datasets"]["flowers102"]}}


def write_config(path: Path, world: Path, task: str, mini: str = "xvlm-mini", **changes: Any) -> Path:
    """The mini's configuration of a task in `path`, with two epochs of the first file; changes: of its values."""
    settings = placed(yaml.safe_load(task_file(mini, task).read_text()), world)
    settings |= {"epochs": 2, "batch_size": 8} | changes
    settings["train"]["files"]["annotations"] = settings["train"]["files"]["annotations"][:1]
    path.write_text(yaml.safe_dump(settings))
    return path


def options(task: str, config: Path, out: Path, *more: object, mini: str = "xvlm-mini") -> list[str]:
    """A command line that starts with the script."""
    options = [f"{task}.py", "--model", mini, "--config", str(config), "--output_dir", str(out)]
    return [*options, "--accelerator", "cpu", *EXTRA.get(task, []), *map(str, more)]
