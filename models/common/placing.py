"""Batches as a model takes them in an evaluation, where no Fabric module stands between."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.base import Batch


def placed(batch: Batch, model: nn.Module) -> Batch:
    """The batch on the model's device, floating-point tensors in the type of its weights (bf16-true, 16-true).

    What is no tensor (ids of questions and images) stays as it is.
    """
    first = next(model.parameters())

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(first.device, first.dtype if value.is_floating_point() else None)

    return {name: moved(value) for name, value in batch.items()}
