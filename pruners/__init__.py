"""HOW it is pruned: one file a method; `prune` runs one on a model and gives a mask per sparsity."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from console.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import nn

    from calibration.stream import Batches
    from pruners.base import Pruner
    from sparsity.allocation import Allocation
    from sparsity.mask import Mask

PRUNERS = {
    "multiflow": "pruners.multiflow:Multiflow",
    "snip": "pruners.snip:SNIP",
    "itersnip": "pruners.itersnip:IterSNIP",
    "omp": "pruners.omp:OMP",
    "localmp": "pruners.localmp:LocalMP",
    "l2": "pruners.l2:L2",
    "lamp": "pruners.lamp:LAMP",
    "rand": "pruners.rand:Rand",
    "wanda": "pruners.wanda:Wanda",
    "sparsegpt": "pruners.sparsegpt:SparseGPT",
    "tamt": "pruners.tamt:TAMT",
    "chita": "pruners.chita:CHITA",
    "chita++": "pruners.chita:CHITAPlusPlus",
}
"""Name -> class. A new method is one line here, one file beside and one test."""

ALLOCATIONS = {
    "global": "sparsity.allocation:cut_globally",
    "layer": "sparsity.allocation:cut_by_layer",
    "row": "sparsity.allocation:cut_by_row",
    "modality": "sparsity.allocation:cut_by_modality",
    "multimodal": "sparsity.allocation:cut_multimodally",
}
"""Name -> how layers share the loss of weights; any can be combined with any one-shot method. Besides, n:m patterns."""


def check_pruner(name: str) -> None:
    """InputError with the nearest name when there is no such pruner; imports nothing."""
    if name not in PRUNERS:
        raise InputError(f"unknown pruner '{name}'{nearest(name, PRUNERS)}: choose one of {', '.join(PRUNERS)}")


def pruner_class(name: str) -> type[Pruner]:
    """The class of a pruner; InputError with the nearest name when there is none."""
    check_pruner(name)
    return _imported(PRUNERS[name])


def allocation_named(name: str) -> Allocation:
    """The allocation of that name, or of a pattern such as 2:4; InputError with the nearest one when there is none."""
    from sparsity.groups import parse_pattern

    pattern = parse_pattern(name)
    if pattern is not None:
        from sparsity.allocation import pattern_allocation

        return pattern_allocation(*pattern)
    if name not in ALLOCATIONS:
        raise InputError(
            f"unknown allocation '{name}'{nearest(name, ALLOCATIONS)}: choose one of {', '.join(ALLOCATIONS)} "
            "or a pattern such as 2:4"
        )
    return _imported(ALLOCATIONS[name])


def _imported(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def prune(
    model: nn.Module,
    batches: Batches,
    pruner: str = "multiflow",
    sparsities: Sequence[float] = (0.63, 0.75, 0.9),
    **options: Any,
) -> dict[float, Mask]:
    """Prune `model` once and return a mask for each sparsity; the model is left as it was.

    model: a `models.base.PrunableModel`. batches: a re-iterable of {"general": {field: tensor}, "region":
    {...}}; methods without data take an empty one. sparsities: shares of prunable weights to go, in (0, 1).
    options: `seed`, `allocation`, `num_batches` (a round, for iterative methods) and the method's own.
    Raises InputError for unknown names, impossible sparsities and unusable batches.
    """
    from pruners.session import Session

    return Session(model, batches, pruner, **options).masks(sparsities)
