"""Cut new masks from saved scores: no data, no model, a few seconds."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from console.errors import InputError
from console.words import agreed
from models.layers import Form
from pruners import PRUNERS
from pruners.outputs import SCORES_FORMAT, Outputs
from pruners.report import print_result, tell_of_collapses
from sparsity.allocation import allocation_named, check_allocation
from sparsity.mask import Mask
from sparsity.percents import parse_percents
from sparsity.picture import draw_layers
from sparsity.scores import Scores
from storage.atomic import no_empty_folder
from storage.tensors import check_seal, parse_metadata, read_safetensors


def recut(args: dict[str, Any]) -> None:
    """Masks at `args["sparsities"]` from the file `args["from_scores"]`.

    Without an `output_dir` they go where the run that wrote the scores would put them; from a file that is no longer
    in the folder of its run, beside it.
    """
    started = time.perf_counter()
    path = Path(args["from_scores"])
    percents = parse_percents(args["sparsities"] or [63, 75, 90])
    scores, weights, about = read_scores(path)
    modality, source = about["modality"], about["source"]
    allocation = args["allocation"] or source["allocation"]
    outputs = _outputs(path, args["output_dir"], source, allocation)
    outputs = dataclasses.replace(outputs, cut=tuple(percents))
    with no_empty_folder(outputs.folder):
        outputs.check_folder(percents)
        sparsities = [percent / 100 for percent in percents]
        masks = cut_masks(scores, weights, modality, forms_in(about), allocation, sparsities)
        for sparsity, mask in masks.items():
            mask.source = source | mask.source | {"from_scores": path.name}
            mask.save(outputs.mask(sparsity))
        draw_layers(masks, outputs.picture, f"{outputs.model}, {outputs.label}")
    tell_of_collapses(masks)
    seconds = time.perf_counter() - started
    print_result(masks, outputs, {"calibration": 0.0, "masks": seconds}, seconds, [])


def _outputs(path: Path, output_dir: str | None, source: dict[str, Any], allocation: str) -> Outputs:
    """The files of the new masks; path: of the scores."""

    def of(allocation: str) -> Outputs:
        special = allocation if allocation != PRUNERS[source["pruner"]].allocation else None
        folder, left_out = output_dir or str(path.absolute().parent.parent), source.get("left_out", ())
        return Outputs.of(folder, source["model"], source["pruner"], special, source["seed"], left_out)

    outputs, own = of(allocation), of(source["allocation"]).label
    stays = path.absolute().parent.name == own and outputs.label != own  # in the run's folders, in one beside its own
    return outputs if output_dir or stays else dataclasses.replace(outputs, folder=path.parent)


def read_scores(path: Path) -> tuple[Scores, dict[str, np.ndarray], dict[str, Any]]:
    """Scores and weights (empty where not saved) as matrices, and what the file says: modality, shapes, source.

    InputError when it is no scores file, or damaged; files of before there was a fingerprint are checked without it.
    """
    tensors, metadata = read_safetensors(path)
    if metadata.get("format") != SCORES_FORMAT:
        raise InputError(f"{path} is no scores file: give a *_scores.safetensors that prune.py wrote")
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
