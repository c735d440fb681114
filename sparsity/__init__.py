"""Masks: which weights are kept, how an exact number is selected, and mask files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.registry import Registry

if TYPE_CHECKING:
    from sparsity.allocation import Allocation

ALLOCATIONS: Registry[Allocation] = Registry(
    "allocation",
    {
        "global": "sparsity.allocation:cut_globally",
        "layer": "sparsity.allocation:cut_by_layer",
        "row": "sparsity.allocation:cut_by_row",
        "modality": "sparsity.allocation:cut_by_modality",
        "multimodal": "sparsity.allocation:cut_multimodally",
        "owl": "sparsity.layer_ratios:cut_by_outliers",
        "das": "sparsity.layer_ratios:cut_by_importance",
        "ecoflap": "sparsity.layer_ratios:cut_by_importance",
    },
    also="or a pattern such as 2:4",
)
"""Name -> how the sparsity is shared among layers; n:m patterns come on top. Any works with any one-shot method."""
