"""Train under a fixed mask: pruned weights are exactly zero at the start and never move.

No mask is multiplied in the forward pass: a weight of zero whose gradient is zero stays zero under every optimizer that
moves a weight by its gradient, its own history and its decay. The lock checks that, instead of believing it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.base import Model
from sparsity.mask import Mask

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> integers of that size."""


class SparseLock:
    """Applies a mask to a model and keeps it: call `hold` between backward and the optimizer's step."""

    def __init__(self, model: Model, mask: Mask):
        """Raises InputError when the mask does not fit; afterwards the pruned weights are zero."""
        fitted = mask.fitted(model)
        fitted.apply(model)
        self.mask = fitted
        self._bits: dict[str, Tensor] = {}
        self._wide: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._layers = model.prunable_layers()
        self._followers = model.followers()
        with torch.no_grad():  # a moving average of zeros stays zero
            for name, layer in self._followers.items():
                layer.weight.masked_fill_(self._kept(name) == 0, 0)

    def _kept(self, name: str) -> Tensor:
        """int8 in the layer's shape and on its device: all bits set where a weight is kept, none where it is pruned."""
        weight = self._layers[name].weight
        bits = self._bits.get(name)
        if bits is None or bits.device != weight.device:
            bits = self._bits[name] = -self.mask[name].to(weight.device, torch.int8)
        return bits

    def _widened(self, name: str, kind: torch.dtype) -> Tensor:
        """The same in another integer type, in memory that all layers use in turn."""
        kept = self._kept(name)
        place = (kind, kept.device)
        if place not in self._wide:
            largest = max(layer.weight.numel() for layer in self._layers.values())
            self._wide[place] = torch.empty(largest, dtype=kind, device=kept.device)
        return self._wide[place][: kept.numel()].view(kept.shape).copy_(kept)

    @torch.no_grad()
    def hold(self) -> None:
        """Take the gradient from pruned weights, before it counts in a norm or reaches the optimizer.

        Its bits are cut: an infinite one becomes zero like any other, and a CPU takes a quarter of the time of
        `masked_fill_`, which goes through numbers one by one.
        """
        for name, layer in self._layers.items():
            gradient = layer.weight.grad
            if gradient is not None:
                kind = INTEGERS[gradient.element_size()]
                gradient.view(kind).bitwise_and_(self._widened(name, kind))

    @torch.no_grad()
    def check(self) -> None:
        """RuntimeError naming the first layer in which a pruned weight is not exactly zero."""
        for name, layer in (*self._layers.items(), *self._followers.items()):
            moved = int(layer.weight.masked_select(self._kept(name) == 0).count_nonzero())
            if moved:
                raise RuntimeError(f"{moved} pruned weights of '{name}' have moved: this is a bug, or the optimizer's")

    def kept_by_modality(self) -> dict[str, int]:
        """Modality -> weights kept, counted from the mask."""
        return {modality: sum(map(self.mask.kept, names)) for modality, names in self.mask.layers_by_modality().items()}
