"""How much the loss changes along a random direction of each layer: the importance of blocks in ECoFLaP.

Sung et al., "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models", ICLR 2024.
A zeroth-order gradient: |L(W + e z) - L(W - e z)| / 2e with normal z, from two passes a layer. The importance of a
block is the sum over its layers.
    python prune.py --pruner wanda --allocation ecoflap
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from calibration.preserve import moving_restored
from calibration.processes import Group
from calibration.statistics import Layers, Statistic
from models.base import Batch, Model
from sparsity.layer_ratios import in_blocks

STEP = 1e-3
"""e, the length of a step along z: the authors' value."""


class LossChanges(Statistic):
    """A statistic, never saved: sums over units of the changes. Each unit draws directions of its own."""

    follows_state = False
    uses_loss: ClassVar[bool] = True
    steps: ClassVar[int | None] = 4  # few, since each step takes two passes for every layer

    def __init__(self, model: Model, layers: Layers):
        self._model, self._layers = model, layers
        device = next(iter(layers.values())).weight.device
        self._sums = torch.zeros(len(layers), dtype=torch.float64, device=device)
        self._fresh = torch.zeros_like(self._sums)

    @torch.no_grad()
    def update(self, batch: Batch) -> None:
        """Two losses for each layer, whose weights are restored bit for bit."""
        for place, layer in enumerate(self._layers.values()):
            weight, noise = layer.weight.detach(), torch.randn_like(layer.weight)
            before = weight.clone()
            try:
                weight.add_(noise, alpha=STEP)
                ahead = self._loss(batch)
                weight.copy_(before).sub_(noise, alpha=STEP)
                back = self._loss(batch)
            finally:
                weight.copy_(before)
            self._fresh[place] = (ahead - back).abs() / (2 * STEP)

    def _loss(self, batch: Batch) -> Tensor:
        """The loss, from the same state of queues and of the generators each time."""
        device = self._fresh.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), moving_restored(self._model):
            return self._model.loss(batch).double()

    def merge(self, group: Group, ranks: list[int]) -> None:
        """Add the last unit of each process, in rank order."""
        for rank in ranks:
            self._sums += group.from_rank(rank, self._fresh, like=self._sums)
        self._fresh.zero_()

    def importance(self) -> dict[str, float]:
        """The importance of each layer: that of its block."""
        own = dict(zip(self._layers, self._sums.tolist(), strict=True))
        return {name: sum(own[o] for o in names) for names in in_blocks(self._layers).values() for name in names}
