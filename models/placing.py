"""Batches as a model takes them in an evaluation, where no Fabric module stands between."""

from __future__ import annotations

from torch import Tensor, nn

from models.base import Batch


def placed(batch: Batch, model: nn.Module) -> Batch:
    """The batch on the model's device, floating-point tensors in the type of its weights (bf16-true, 16-true)."""
    first = next(model.parameters())

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(first.device, first.dtype if tensor.is_floating_point() else None)

    return {name: moved(tensor) for name, tensor in batch.items()}
