"""A classification run of seconds: the mini DINO on two dozen classes of two drawn images each."""

from __future__ import annotations

from pathlib import Path

import yaml

from data.miniworld import ensure
from tests.training.small_finetuning import flowers


def small_config(folder: Path, **changes: object) -> Path:
    """configs/dino-mini/image_classification.yaml in a small world below `folder`, with changes; returns its path."""
    world = ensure("flowers102", folder / "world", workers=1, show=False, scale=0.02)
    settings = flowers(world)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings | {"epochs": 2, "batch_size": 8} | changes))
    return path


def options(config: Path, out: Path, *more: object) -> list[str]:
    """The command, dense unless a mask is among `more`."""
    command = ["image_classification.py", "--model", "dino-mini", "--config", config, "--output_dir", out]
    command += ["--accelerator", "cpu", *([] if "--mask" in more else ["--dense"]), *more]
    return list(map(str, command))
