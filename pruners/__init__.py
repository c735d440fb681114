"""Pruning methods, one file each; `prune` runs one on a model and returns a mask per sparsity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from configs.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from calibration.stream import Batches
    from pruners.base import Pruner
    from sparsity.mask import Mask

PRUNERS: Registry[type[Pruner]] = Registry(
    "pruner",
    {
        "multiflow": "pruners.multiflow:Multiflow",
        "snip": "pruners.snip:SNIP",
        "itersnip": "pruners.itersnip:IterSNIP",
        "omp": "pruners.omp:OMP",
        "localmp": "pruners.omp:LocalMP",
        "l2": "pruners.l2:L2",
        "lamp": "pruners.lamp:LAMP",
        "rand": "pruners.rand:Rand",
        "wanda": "pruners.wanda:Wanda",
        "sparsegpt": "pruners.sparsegpt:SparseGPT",
        "tamt": "pruners.tamt:TAMT",
        "chita": "pruners.chita:CHITA",
        "chita++": "pruners.chita:CHITAPlusPlus",
    },
)
"""Name -> class. A new method is one line here, its file and one test."""

REPAIRS: Registry[Callable[[Pruner, Mapping[float, Mask]], dict[float, Mask]]] = Registry(
    "repair",
    {
        "dsnot": "pruners.dsnot:repair",
    },
)
"""Name -> a function from masks to better ones, with as many weights in every row."""


def prune(
    model: nn.Module,
    batches: Batches,
    pruner: str = "multiflow",
    sparsities: Sequence[float] = (0.63, 0.75, 0.9),
    **options: Any,
) -> dict[float, Mask]:
    """Prune `model` once and return a mask for each sparsity; the model is left as it was.

    model: a `models.base.Model`. batches: a re-iterable of {"general": {field: tensor}, "region":
    {...}}; methods without data take an empty one. sparsities: shares of prunable weights to prune, in (0, 1).
    options: `seed`, `allocation`, `repair`, `num_batches` (a round, for iterative methods) and the method's own.
    Raises InputError for unknown names, impossible sparsities and unusable batches.
    """
    from pruners.session import Session

    return Session(model, batches, pruner, **options).masks(sparsities)
