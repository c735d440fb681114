"""Cut new masks from saved scores: no data, no model, a few seconds."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from console.errors import InputError
from models.layers import Form
from pruners import allocation_named, pruner_class
from pruners.allocation import check_allocation
from pruners.mask import Mask
from pruners.outputs import SCORES_FORMAT, Outputs
from pruners.percents import parse_percents
from pruners.picture import draw_layers
from pruners.report import print_result, tell_of_collapses
from pruners.scores import Scores
from storage.tensors import parse_metadata, read_safetensors


def recut(args: dict[str, Any]) -> None:
    """Masks at `args["sparsities"]` from the file `args["from_scores"]`, beside the others of that run."""
    started = time.perf_counter()
    path = Path(args["from_scores"])
    percents = parse_percents(args["sparsities"] or [63, 75, 90])
    scores, weights, about = read_scores(path)
    modality, source = about["modality"], about["source"]
    allocation = args["allocation"] or source["allocation"]
    special = allocation if allocation != pruner_class(source["pruner"]).allocation else None
    folder = args["output_dir"] or str(path.parent.parent)
    outputs = Outputs.of(folder, source["model"], source["pruner"], special, source["seed"], source.get("left_out", ()))
    outputs = dataclasses.replace(outputs, cut="-".join(f"{percent:.10g}" for percent in percents))
    outputs.check_folder()
    masks = cut_masks(scores, weights, modality, forms_in(about), allocation, [percent / 100 for percent in percents])
    for sparsity, mask in masks.items():
        mask.source = source | mask.source | {"from_scores": path.name}
        mask.save(outputs.mask(sparsity))
    draw_layers(masks, outputs.picture, f"{outputs.model}, {outputs.label}")
    tell_of_collapses(masks)
    seconds = time.perf_counter() - started
    print_result(masks, outputs, {"calibration": 0.0, "masks": seconds}, seconds, [])


def read_scores(path: Path) -> tuple[Scores, dict[str, np.ndarray], dict[str, Any]]:
    """Scores and weights (empty where not saved) as matrices, and what the file says: modality, shapes, source."""
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != SCORES_FORMAT:
        raise InputError(f"{path} is no scores file: give a *_scores.safetensors that prune.py wrote")
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
) -> dict[float, Mask]:
    """Masks from saved scores as the allocation says; InputError when it needs magnitudes that were not saved."""

    def magnitude(name: str) -> np.ndarray:
        if name not in weights:
            raise InputError(
                f"the allocation '{allocation}' needs the weights' magnitudes, which this scores file does not hold: "
                "prune with --allocation multimodal once"
            )
        return np.abs(weights[name])

    magnitudes = Scores(scores.shapes, magnitude)
    check_allocation(allocation, sparsities, scores.shapes)
    cuts = allocation_named(allocation)(scores, magnitudes, modality, sparsities)
    masks = {}
    for sparsity in sparsities:
        masks[sparsity] = mask = Mask.cut(scores, cuts[sparsity], modality, forms)
        mask.source = {
            "allocation": allocation,
            "sparsity_asked": sparsity,
            "sparsity_reached": mask.sparsity(),
        }
    return masks
