"""Restore a model after pruning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from calibration.stream import device_of
from models.base import Model
from models.common.blocks import reentrant_checkpoints_replaced
from models.common.repeatable import repeated_on_cpu


@contextlib.contextmanager
def preserved(model: Model, gradients: bool) -> Iterator[None]:
    """Restore modes, gradients, `requires_grad` and moving tensors (queues, temperature) on exit.

    Inside, the model is in eval mode, and only prunable weights require gradients (none without `gradients`).
    """
    module: nn.Module = model  # type: ignore[assignment]
    training = {part: part.training for part in module.modules()}
    required = {parameter: parameter.requires_grad for parameter in module.parameters()}
    kept_gradients = {parameter: parameter.grad for parameter in module.parameters() if parameter.grad is not None}
    try:
        with moving_restored(model), reentrant_checkpoints_replaced(), repeated_on_cpu(device_of(model)):
            module.eval()
            for parameter in required:
                parameter.requires_grad_(False)
                parameter.grad = None
            if gradients:
                for layer in model.prunable_layers().values():
                    layer.weight.requires_grad_(True)
            yield
    finally:
        for part, mode in training.items():
            part.training = mode
        for parameter, value in required.items():
            parameter.grad = None
            parameter.requires_grad_(value)
            parameter.grad = kept_gradients.get(parameter)


def moving_restored(model: Model) -> contextlib.AbstractContextManager[None]:
    """Restore the tensors that computing a loss changes."""
    return restored(model.moving_tensors())


@contextlib.contextmanager
def restored(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Restore the values of tensors on exit, in place."""
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in saved:
                tensor.copy_(value)
