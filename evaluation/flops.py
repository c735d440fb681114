"""FLOPs of a forward pass, counted by torch, and what is left of them where pruned weights cost nothing.

A multiplication and its addition are two FLOPs. Element-wise work (norms, activations, softmax) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.base import PrunableModel
from pruners.mask import Mask


@dataclass(frozen=True)
class Work:
    """total: FLOPs of a pass; layers: name of a prunable weight -> FLOPs of its products."""

    total: int
    layers: dict[str, int]

    def nominal(self, mask: Mask) -> int:
        """FLOPs when each product takes as much of its work as its layer keeps of its weights.

        Attention's products and layers that are never pruned count in full. No hardware promises this number.
        """
        spared = sum(
            flops * (mask.size(name) - mask.kept(name)) // mask.size(name) for name, flops in self.layers.items()
        )
        return self.total - spared


def layer_uses(model: PrunableModel) -> dict[str, list[nn.Module]]:
    """Name of a prunable weight -> every module that multiplies by it: more than one where tensors are shared."""
    names = {id(layer.weight): name for name, layer in model.prunable_layers().items()}
    uses: dict[str, list[nn.Module]] = {name: [] for name in names.values()}
    for module in model.modules():
        name = names.get(id(getattr(module, "weight", None)))
        if name is not None:
            uses[name].append(module)
    return uses


def count_flops(model: PrunableModel, run: Callable[[], object]) -> Work:
    """The work of one call of `run`, which calls the model."""
    layers: dict[str, int] = {}
    counter = FlopCounterMode(display=False)
    handles = []

    def watch(name: str, layer: nn.Module) -> None:
        layers[name] = 0

        def before(*_: object) -> None:
            layers[name] -= counter.get_total_flops()

        def after(*_: object) -> None:
            layers[name] += counter.get_total_flops()

        handles.extend((layer.register_forward_pre_hook(before), layer.register_forward_hook(after)))

    for name, modules in layer_uses(model).items():
        for module in modules:
            watch(name, module)
    try:
        # torch knows no count for the fused attention of CPUs and would take it for free: plain products it knows.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return Work(counter.get_total_flops(), layers)
