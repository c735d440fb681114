"""FLOPs of a forward pass, counted by torch, and the FLOPs without pruned weights.

A multiplication and its addition are two FLOPs. Element-wise work (norms, activations, softmax) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.base import Model
from models.layers import Product, attention_products, layer_uses
from sparsity.mask import Mask


@dataclass(frozen=True)
class Work:
    """total: FLOPs of a pass. layers: name of a prunable weight -> FLOPs of its products."""

    total: int
    layers: dict[str, int]

    def nominal(self, mask: Mask) -> int:
        """FLOPs if the work of each layer were proportional to its density, an ideal that no hardware guarantees.

        Attention's products and layers that are never pruned count in full.
        """
        spared = sum(
            flops * (mask.size(name) - mask.kept(name)) // mask.size(name) for name, flops in self.layers.items()
        )
        return self.total - spared


def count_flops(model: Model, run: Callable[[], object]) -> Work:
    """The work of one call of `run`, which calls the model."""
    layers = dict.fromkeys(model.prunable_layers(), 0)
    counter = FlopCounterMode(display=False)
    handles = []

    def add(name: str, sign: int, *_: object) -> None:
        layers[name] += sign * counter.get_total_flops()

    def multiplied(product: Product, multiply: Callable[[], Tensor]) -> Tensor:
        add(product.name, -1)
        result = multiply()
        add(product.name, 1)
        return result

    for name, uses in layer_uses(model).items():
        for module in uses.values():
            if isinstance(module, nn.Module):
                handles.append(module.register_forward_pre_hook(partial(add, name, -1)))
                handles.append(module.register_forward_hook(partial(add, name, 1)))
    try:
        # torch counts fused attention on CPUs as zero, so plain products are used.
        with attention_products(model, multiplied), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return Work(counter.get_total_flops(), layers)
