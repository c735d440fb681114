"""Runs of seconds behind a visual prompt: a small ResNet of random weights on class folders of coloured noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

MODEL = {
    "conv": True,
    "channels": [8, 8, 16, 16],
    "pretrained_cfg_overlay": {"input_size": [3, 32, 32]},
    "num_classes": 7,
}


def draw(folder: Path, classes: int, train: int = 8, test: int = 4) -> dict:
    """Pictures of 20 pixels, a hue a class, in folders; returns the data set's section of a configuration."""
    rng = np.random.default_rng(classes)
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                picture = rng.integers(0, 160, (20, 20, 3))
                picture[..., label % 3] += 30 * (1 + label // 3)
                Image.fromarray(picture.astype(np.uint8)).save(place / f"{number}.png")
    files = {"folder": str(folder)}
    return {"train": {"reader": "pictures", "files": files, "splits": ["train"]}, "test": splits(files)}


def splits(files: dict) -> dict:
    """The test images of files."""
    return {"files": files, "splits": ["test"]}


def write(path: Path, sets: dict, **changes: object) -> Path:
    """A configuration of four epochs, eight steps each for 32 pictures; changes: of its values."""
    recipe = {"optimizer": "sgd", "lr": 0.01, "weight_decay": 1e-4, "schedule": {"warmup": 0.0, "decay": "cosine"}}
    settings = {"epochs": 4, "batch_size": 8, "recipe": recipe, "model": MODEL, "datasets": sets}
    settings["prompts"] = {"prompt_width": 4, "prompt_lr": 0.05}
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def command(config: Path, out: Path, *more: object) -> list[str]:
    """The command line; random weights unless -pre is among `more`."""
    words = ["image_classification.py", "--model", "timm:resnet18", "--config", config, "--output_dir", out]
    words += ["--accelerator", "cpu", *([] if "-pre" in more else ["-pre", "random"]), *more]
    return list(map(str, words))
