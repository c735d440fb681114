"""Short names: of mask files among each other, and of a layer within its block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pruners.report import shorten


def labels(paths: Sequence[Path]) -> list[str]:
    """What tells the files apart: their names without the words that all begin or end with; different for each.

    [.../xvlm-mini_omp_75_seed42.safetensors, .../xvlm-mini_lamp_75_seed42.safetensors] -> [omp, lamp]
    """
    if len(paths) < 2:
        return [path.stem for path in paths]
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):  # the same name in several folders: the folders tell
        stems = [str(path.with_suffix("")) for path in paths]
    words = [stem.replace("/", "_").split("_") for stem in stems]
    shortest = min(map(len, words))
    start = next((k for k in range(shortest) if len({w[k] for w in words}) > 1), shortest)
    rest = [w[start:] for w in words]
    shortest = min(map(len, rest))
    end = next((k for k in range(shortest) if len({w[-1 - k] for w in rest}) > 1), shortest)
    short = ["_".join(w[: len(w) - end]) for w in rest]
    return short if all(short) and len(set(short)) == len(short) else numbered(stems)


def numbered(stems: Sequence[str]) -> list[str]:
    """The names themselves, numbered where two are the same."""
    return [s if stems.count(s) == 1 else f"{s} ({stems[: i + 1].count(s)})" for i, s in enumerate(stems)]


def block_and_rest(name: str) -> tuple[str, str]:
    """A parameter's block (up to the first number in its name) and its place in there, both shortened.

    vision_encoder.encoder.layers.0.mlp.fc1.weight -> (vision_encoder.0, mlp.fc1)
    """
    parts = name.removesuffix(".weight").split(".")
    numbers = [k for k, part in enumerate(parts[:-1]) if part.isdigit()]
    cut = numbers[0] + 1 if numbers else len(parts) - 1
    block, rest = ".".join(parts[:cut]), ".".join(parts[cut:])
    return shorten(block) or block, shorten(rest) or rest
