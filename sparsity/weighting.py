"""Factors on the scores of whole layers: the intrinsic dimensions of their outputs.

ID-weighted scores (Wang et al., ICML 2024): score * ID ** power. They matter only where weights of several layers
compete for one threshold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from console.errors import InputError
from console.progress import console
from console.words import counted
from models.base import Model
from models.common.checkpoint import own_names
from sparsity.allocation import allocation_named
from sparsity.scores import Scores
from storage.hashing import hash_json

FORMAT = "vlm-pruning-ids-1"


@dataclass(frozen=True)
class LayerWeights:
    """by_name: parameter -> intrinsic dimension, as measured on a model; power: its exponent in a layer's factor."""

    by_name: Mapping[str, float]
    power: float
    about: Mapping[str, Any]  # the metadata of the file

    @property
    def identity(self) -> dict[str, Any]:
        """Fields of the identity of a run that uses them."""
        return {"ids": hash_json(dict(self.by_name)), "id_power": self.power}

    def fitted(self, model: Model) -> dict[str, float]:
        """A factor for each prunable layer of a model, whose names are matched as those of masks are.

        A layer that was not measured gets the mean of its modality, and is named. InputError for dimensions of another
        model.
        """
        layers = model.prunable_layers()
        measured = {name: torch.tensor(value, dtype=torch.float64) for name, value in self.by_name.items()}
        if not set(measured) >= set(layers):
            shapes = self.about.get("shapes", {})
            wide = {n: v.expand(*shapes[n]) if n in shapes else v for n, v in measured.items()}
            measured = {name: value.flatten()[0] for name, value in own_names(wide, model).items()}
        known = {name: float(measured[name]) for name in layers if name in measured}
        strange = [name for name in measured if name not in layers and name not in model.state_dict()]
        if not known or strange:
            of = self.about.get("model", "another model")
            name = strange[0] if strange else next(iter(self.by_name))
            raise InputError(
                f"these intrinsic dimensions belong to another model ({of}): this one has no layer '{name}'; measure "
                "them on its pretraining model (python -m inspection.intrinsic_dimension)"
            )
        by_modality: dict[str, list[float]] = {}
        for name, value in known.items():
            by_modality.setdefault(model.modality_of(name), []).append(value)
        missing = [name for name in layers if name not in known]
        everywhere = list(known.values())
        for name in missing:
            values = by_modality.get(model.modality_of(name), everywhere)
            known[name] = sum(values) / len(values)
        if missing:
            console.print(
                f"note: {counted(len(missing), 'layer', 'was', of=len(layers))} not measured (first: {missing[0]}): "
                "the mean of the modality is used"
            )
        return {name: known[name] ** self.power for name in layers}


def read_ids(path: Path | str, power: float) -> LayerWeights:
    """The file that `inspection.intrinsic_dimension` wrote; InputError when it is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        by_name = {str(name): float(value) for name, value in content["dimensions"].items()}
        assert content["format"] == FORMAT and all(0 < value < float("inf") for value in by_name.values())
    except OSError as error:
        raise InputError(f"{path} cannot be read: give a file of intrinsic dimensions with --ids") from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise InputError(
            f"{path} is not a file of intrinsic dimensions: give one that python -m inspection.intrinsic_dimension "
            "wrote"
        ) from error
    return LayerWeights(by_name, power, {key: value for key, value in content.items() if key != "dimensions"})


def check_competition(allocation: str) -> None:
    """InputError for an allocation within layers, under which factors on layers change nothing."""
    found = allocation_named(allocation)
    if found.by_row or not found.compares:
        raise InputError(
            f"--ids changes nothing under the allocation '{allocation}', whose layers do not compete: choose "
            "global, modality or multimodal, or leave --ids out"
        )


def weighted(scores: Scores, factors: Mapping[str, float]) -> Scores:
    """Scores times the factor of their layer, computed on access."""
    return Scores(scores.shapes, lambda name: scores[name] * torch.tensor(factors[name]).float().item())
