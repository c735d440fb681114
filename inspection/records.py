"""Results as JSON: numbers are shares in [0, 1], names are those of the mask files."""

from __future__ import annotations

import dataclasses
from typing import Any

from inspection.comparison import Comparison, Overlap
from inspection.layers import Counts, total
from inspection.reading import MaskFile
from inspection.stability import Stability, Votes


def inspection_record(file: MaskFile, counts: dict[str, Counts], warnings: list[str]) -> dict[str, Any]:
    """One mask: totals, modalities, layers, warnings."""
    return _file(file) | {
        "warnings": warnings,
        "total": _counts(total(counts.values())),
        "modalities": {
            modality: _counts(total(counts[name] for name in names))
            for modality, names in file.mask.layers_by_modality().items()
        },
        "layers": {name: {"shape": list(file.mask.shape(name))} | _counts(count) for name, count in counts.items()},
    }


def comparison_record(comparison: Comparison) -> dict[str, Any]:
    """All pairs of masks: overall, by modality, by layer."""
    files = comparison.files
    return {
        "masks": [_file(file) for file in files],
        "pairs": [
            {"a": files[i].label, "b": files[j].label}
            | {"overall": _overlap(comparison.overlap((i, j)))}
            | {"modalities": {m: _overlap(comparison.overlap((i, j), n)) for m, n in comparison.modalities.items()}}
            | {"layers": {name: _overlap(found) for name, found in layers.items()}}
            for (i, j), layers in comparison.pairs.items()
        ],
    }


def stability_record(stability: Stability) -> dict[str, Any]:
    """The pairs, their spread, and the votes."""
    compared = stability.comparison
    places = {"overall": (compared.layers, stability.overall)} | {
        modality: (names, stability.votes[modality]) for modality, names in compared.modalities.items()
    }
    return {
        place: {"iou": dataclasses.asdict(compared.iou(names)), "chance": compared.chance(names)} | _votes(votes)
        for place, (names, votes) in places.items()
    } | comparison_record(compared)


def _file(file: MaskFile) -> dict[str, Any]:
    return {
        "label": file.label,
        "file": str(file.path),
        "source": file.mask.source,
        "sparsity": file.mask.sparsity(),
        "updates_weights": file.mask.has_values,
    }


def _counts(counts: Counts) -> dict[str, Any]:
    return dataclasses.asdict(counts) | {"sparsity": counts.sparsity}


def _overlap(found: Overlap) -> dict[str, Any]:
    shares = {key: getattr(found, key) for key in ("iou", "chance", "overlap", "agreement")}
    return {"size": found.size, "kept_a": found.a, "kept_b": found.b, "kept_by_both": found.both} | shares


def _votes(votes: Votes) -> dict[str, Any]:
    return {
        "kept_by": votes.counts.tolist(),
        "kept_by_expected": votes.expected.tolist(),
        "core": votes.core,
        "core_by_chance": votes.core_by_chance,
    }
