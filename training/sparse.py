"""Train under a fixed mask: pruned weights are exactly zero at the start and never move.

No mask is multiplied in the forward pass: a weight of zero whose gradient is zero stays zero under every optimizer that
moves a weight by its gradient, its own history and its decay. The lock checks that, instead of believing it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pruners.mask import Mask


class SparseLock:
    """Applies a mask to a model and keeps it: call `hold` between backward and the optimizer's step."""

    def __init__(self, model: nn.Module, mask: Mask):
        """Raises InputError when the mask does not fit; afterwards the pruned weights are zero."""
        fitted = mask.fitted(model)
        fitted.apply(model)
        self.mask = fitted
        self._pruned: dict[str, Tensor] = {}
        self._layers = model.prunable_layers()
        self._followers: dict[str, nn.Linear] = model.followers() if hasattr(model, "followers") else {}
        with torch.no_grad():  # a moving average of zeros stays zero
            for name, layer in self._followers.items():
                layer.weight.masked_fill_(self._pruned_of(name), 0)

    def _pruned_of(self, name: str) -> Tensor:
        """True where the layer is pruned, on its device."""
        weight = self._layers[name].weight
        pruned = self._pruned.get(name)
        if pruned is None or pruned.device != weight.device:
            pruned = self._pruned[name] = (~self.mask[name]).to(weight.device)
        return pruned

    @torch.no_grad()
    def hold(self) -> None:
        """Take the gradient from pruned weights, before it counts in a norm or reaches the optimizer."""
        for name, layer in self._layers.items():
            if layer.weight.grad is not None:
                layer.weight.grad.masked_fill_(self._pruned_of(name), 0)

    @torch.no_grad()
    def check(self) -> None:
        """RuntimeError naming the first layer in which a pruned weight is not exactly zero."""
        for name, layer in (*self._layers.items(), *self._followers.items()):
            moved = int(layer.weight.masked_select(self._pruned_of(name)).count_nonzero())
            if moved:
                raise RuntimeError(f"{moved} pruned weights of '{name}' have moved: this is a bug, or the optimizer's")

    def kept_by_modality(self) -> dict[str, int]:
        """Modality -> weights kept, counted from the mask."""
        return {modality: sum(map(self.mask.kept, names)) for modality, names in self.mask.layers_by_modality().items()}
