"""How many weights a mask keeps of every layer, counted from its file; results carry it, since masks are heavy."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

Layers = dict[str, dict[str, list[int]]]
"""Modality -> layer -> [kept, size], in the order of the model."""


def weights_in_matrices(path: Path) -> int | None:
    """How many weights the masked model has in matrices, prunable or not; None where the mask's file does not say."""
    try:
        with safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {}).get("about", "{}")).get("source", {}).get("weights_in_matrices")
    except (SafetensorError, OSError, ValueError):
        return None


def count_layers(path: Path) -> Layers | None:
    """The layers of a mask that prune.py wrote; None where there is no such file. Imports no torch."""
    if not path.is_file():
        return None
    found: Layers = {}
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            for name, shape in about.get("shapes", {}).items():
                kept = int(np.bitwise_count(file.get_tensor(name)).sum())
                modality = about["modalities"].get(name, "all")
                found.setdefault(modality, {})[name] = [kept, math.prod(shape)]
    except (SafetensorError, OSError, ValueError, KeyError):  # a file of another kind
        return None
    return found or None
