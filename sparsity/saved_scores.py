"""Scores files, from which masks of other sparsities are made in seconds, without data or model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from console.errors import InputError
from console.words import agreed
from models.layers import Form
from sparsity.allocation import allocation_named, check_allocation
from sparsity.mask import Mask
from sparsity.scores import Scores
from sparsity.weighting import weighted
from storage.tensors import check_seal, parse_metadata, read_safetensors, sealed, write_safetensors

SCORES_FORMAT = "vlm-pruning-scores-1"


def write_scores(
    path: Path,
    scores: Scores,
    weights: Mapping[str, Tensor],
    modality: Mapping[str, str],
    forms: Mapping[str, Form],
    source: dict[str, Any],
    factors: Mapping[str, float] | None = None,
    importance: Mapping[str, float] | None = None,
) -> None:
    """Write the scores of all layers, weights as matrices [o, i] where an allocation needs them, and the source of the
    scores.

    factors: by which the scores of layers were multiplied when masks were made. importance: of layers, for allocations
    that rank them.
    """
    tensors: dict[str, Tensor] = {f"score.{name}": torch.from_numpy(layer) for name, layer in scores.items()}
    tensors |= {f"weight.{name}": weight for name, weight in weights.items()}
    about = {"modality": dict(modality), "shapes": {n: f.shape for n, f in forms.items()}, "source": source}
    if factors:
        about["factors"] = dict(factors)
    if importance:
        about["importance"] = dict(importance)
    if transposed := [name for name, form in forms.items() if form.transposed]:
        about["transposed"] = transposed
    write_safetensors(path, tensors, sealed(tensors, {"format": SCORES_FORMAT, "about": json.dumps(about)}))


def read_scores(path: Path) -> tuple[Scores, dict[str, np.ndarray], dict[str, Any]]:
    """Scores and weights (empty where not saved) as matrices, and what the file says: modality, shapes, source.

    InputError when it is not a scores file, or damaged; older files, which have no hash, are read without that check.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != SCORES_FORMAT:
        raise InputError(f"{path} is not a scores file: give a *_scores.safetensors that prune.py wrote")
    check_seal(path, tensors, metadata, "scores")
    about = parse_metadata(path, metadata, "about", ("modality", "shapes", "source"))
    lacking = [key for key in ("model", "pruner", "seed", "allocation") if key not in about["source"]]
    if lacking:
        raise InputError(f"{path} is damaged: it does not say its {lacking[0]}; prune again")
    parts: dict[str, dict[str, np.ndarray]] = {"score": {}, "weight": {}}
    for name in about["modality"]:
        for kind, found in parts.items():
            if f"{kind}.{name}" in tensors:
                found[name] = tensors[f"{kind}.{name}"].numpy()
    for name in about["modality"]:
        size = int(np.prod(about["shapes"].get(name, [0])))
        for kind, found in parts.items():
            if (name in found or kind == "score") and getattr(found.get(name), "size", 0) != size:
                raise InputError(f"{path} is damaged: the {kind}s of '{name}' are missing or too few; prune again")
            bad = int(np.size(found.get(name, ())) - np.isfinite(found.get(name, ())).sum())
            if bad:
                raise InputError(
                    f"{path} is damaged: of the {kind}s of '{name}', {bad:,} {agreed(bad, 'is')} NaN or "
                    "infinite; copy it again, or prune again"
                )
    return Scores.of(parts["score"]), parts["weight"], about


def forms_in(about: dict[str, Any]) -> dict[str, Form]:
    """How each parameter keeps its matrix, from what a scores file says."""
    transposed = about.get("transposed", ())
    return {name: Form(tuple(shape), name in transposed) for name, shape in about["shapes"].items()}


def cut_masks(
    scores: Scores,
    weights: dict[str, np.ndarray],
    modality: dict[str, str],
    forms: dict[str, Form],
    allocation: str,
    sparsities: list[float],
    factors: Mapping[str, float] | None = None,
    importance: Mapping[str, float] | None = None,
) -> dict[float, Mask]:
    """Masks from saved scores times factors on layers; InputError when the needed magnitudes were not saved."""

    def magnitude(name: str) -> np.ndarray:
        if name not in weights:
            raise InputError(
                f"the allocation '{allocation}' needs the weights' magnitudes, which this scores file does not hold: "
                "run prune.py with --allocation multimodal"
            )
        return np.abs(weights[name])

    magnitudes = Scores(scores.shapes, magnitude)
    check_allocation(allocation, sparsities, scores.shapes)
    if factors:
        scores, magnitudes = weighted(scores, factors), weighted(magnitudes, factors)
    found = allocation_named(allocation)
    if found.ranked and importance is None:
        raise InputError(
            f"the allocation '{allocation}' ranks layers by the calibration data, which this scores file does not "
            f"hold: run prune.py with --allocation {allocation}"
        )
    measured = {"importance": importance} if found.ranked else {}
    cuts = found(scores, magnitudes, modality, sparsities, **measured)
    masks = Mask.cut(scores, cuts, sparsities, modality, forms)
    for sparsity, mask in masks.items():
        mask.source = {
            "allocation": allocation,
            "sparsity_asked": sparsity,
            "sparsity_reached": mask.sparsity(),
        }
    return masks
