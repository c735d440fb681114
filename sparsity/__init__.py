"""Masks: which weights stay, how that is chosen exactly, and the files it is kept in."""

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
    },
    also="or a pattern such as 2:4",
)
"""Name -> how layers share the loss of weights; any goes with any one-shot method. Besides, n:m patterns."""
