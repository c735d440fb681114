"""Prune several times, each with calibration data drawn anew, as prune.py would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from configs.schema import parse
from console.progress import console
from pruners.command import PruneConfig, prune_command


def draw_masks(args: dict[str, Any], settings: dict[str, Any], where: str, draws: int, sparsity: float) -> list[Path]:
    """The mask files of `draws` prunings whose seeds follow each other, at one sparsity in (0, 1).

    args: the command line of prune.py as a dict; its seed is the first one. settings: its configuration, from `where`.
    """
    first = parse(PruneConfig, settings, where).seed if args["seed"] is None else args["seed"]
    paths = []
    for number, seed in enumerate(range(first, first + draws), 1):
        console.print(f"draw {number} of {draws}, seed {seed}")
        paths.append(prune_command(args | {"seed": seed}, settings, where).mask(sparsity))
    return paths
