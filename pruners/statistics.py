"""What is gathered while the data passes once: input norms of layers, or mean gradients.

Each statistic keeps running sums only. `update` sees one unit, `merge` adds the units of all processes
in their order (see pruners.units), `state` and `restore` carry the sums over an interruption.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from console.errors import InputError
from models.base import Batch, PrunableModel
from pruners.group import Group
from pruners.layer_inputs import squares, watch_inputs, width

Layers = dict[str, nn.Module]
UNITS = "units of gradients"  # key of the count beside the layers' sums


class Statistic(Protocol):
    """Running sums over calibration units.

    follows_state: whether what a unit gives depends on the units before it (a model with queues or momentum); then
    `pass_by` is called for the units of other processes.
    """

    follows_state: bool

    def update(self, batch: Batch) -> None:
        """See one unit."""

    def pass_by(self, batch: Batch) -> None:
        """Move the model's state along at another process's unit."""

    def merge(self, group: Group, ranks: list[int]) -> None:
        """Add what the processes `ranks` saw since the last merge, in the order of units."""

    def state(self) -> dict[str, Tensor]:
        """The sums, to be saved."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put saved sums back."""


class InputNorms:
    """Norm of each input channel of each layer: a_i = sqrt(sum over real tokens of x_i^2 / sequences).

    MULTIFLOW's activation statistic (CVPR 2024, eq. 3): float64 sums, padding does not count.
    """

    follows_state = False

    def __init__(self, model: PrunableModel, layers: Layers):
        self._model = model
        self._layers = layers
        self._offsets: dict[str, int] = {}
        length = 0
        for name, layer in layers.items():
            self._offsets[name] = length
            length += width(layer) + 1  # channel sums, then the number of sequences
        device = next(iter(layers.values())).weight.device
        self._sums = torch.zeros(length, dtype=torch.float64, device=device)
        self._fresh = torch.zeros_like(self._sums)
        self._last: tuple[Tensor, Tensor | None, Tensor] | None = None

    def update(self, batch: Batch) -> None:
        """Forward the batch without losses, adding up squares at every layer's input."""
        watch_inputs(self._model, self._layers, batch, self._add)
        self._last = None

    def _add(self, name: str, layer: nn.Module, x: Tensor, real: Tensor | None) -> None:
        start = self._offsets[name]
        found = self._squares(layer, x, real)
        self._fresh[start : start + found.numel()] += found
        self._fresh[start + found.numel()] += x.shape[0]

    def _squares(self, layer: nn.Module, x: Tensor, real: Tensor | None) -> Tensor:
        """Sum of x^2 over all real tokens [i]; linear layers that share an input share the sum."""
        if not isinstance(layer, nn.Linear):
            return squares(layer, x, real)
        if self._last is None or self._last[0] is not x or self._last[1] is not real:
            self._last = (x, real, squares(layer, x, real))
        return self._last[2]

    def pass_by(self, batch: Batch) -> None:
        """Norms of a unit depend on that unit alone."""

    def merge(self, group: Group, ranks: list[int]) -> None:
        """Add the last unit of each process, in turn."""
        for rank in ranks:
            self._sums += group.from_rank(rank, self._fresh, like=self._sums)
        self._fresh.zero_()

    def norms(self, name: str) -> Tensor:
        """a [i], float32; InputError when the layer never saw an input."""
        start, i = self._offsets[name], width(self._layers[name])
        sequences = self._sums[start + i]
        if sequences == 0:
            raise InputError(f"layer '{name}' saw no input during calibration: exclude it or use it in `observe`")
        return (self._sums[start : start + i] / sequences).sqrt().float()

    def state(self) -> dict[str, Tensor]:
        """One vector of sums."""
        return {"sums": self._sums}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from saved sums."""
        self._sums.copy_(state["sums"])


class MeanGradients:
    """Sum over units of the gradient of the loss with respect to each prunable weight.

    The sum is kept in the parameters' own `.grad`, so that it costs no memory beyond a backward pass.
    """

    def __init__(self, model: PrunableModel, layers: Layers, group: Group):
        self.follows_state = model.stateful
        self._model = model
        self._layers = layers
        self._group = group
        self._merged: dict[str, Tensor] = {}  # the sums, apart from .grad: with several processes only
        self._units = 0

    def update(self, batch: Batch) -> None:
        """Back-propagate the pretraining loss of one unit."""
        loss = self._model.loss(batch)
        if not loss.requires_grad:
            raise InputError("the model's loss has no gradient with respect to the prunable weights")
        loss.backward()

    def pass_by(self, batch: Batch) -> None:
        """Queues and momentum copies move as at any batch."""
        self._model.pass_by(batch)

    def merge(self, group: Group, ranks: list[int]) -> None:
        """One process adds up in `.grad`; several take turns, layer by layer, in the order of units."""
        self._units += len(ranks)
        if group.size == 1:
            return
        for name, layer in self._layers.items():
            merged = self._merged.setdefault(name, torch.zeros_like(layer.weight))
            for rank in ranks:
                merged += group.from_rank(rank, layer.weight.grad, like=merged)
            layer.weight.grad = None

    def mean(self, name: str) -> Tensor:
        """Mean gradient [o, i] of a layer, in the sum's own memory; InputError when no loss reached the layer.

        To be asked once: afterwards the sums are gone.
        """
        return self._sum(name).div_(self._units)

    def _sum(self, name: str) -> Tensor:
        grad = self._layers[name].weight.grad if self._group.size == 1 else self._merged.get(name)
        if grad is None:
            raise InputError(f"the loss gives no gradient to '{name}': exclude the layer or let the loss use it")
        return grad

    def clear(self) -> None:
        """Forget all sums."""
        self._merged, self._units = {}, 0
        for layer in self._layers.values():
            layer.weight.grad = None

    def state(self) -> dict[str, Tensor]:
        """The sums by layer, and how many units are in them."""
        return {name: self._sum(name) for name in self._layers} | {UNITS: torch.tensor(self._units)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from saved sums."""
        self._units = int(state[UNITS])
        for name, layer in self._layers.items():
            saved = state[name].to(layer.weight.device)
            if self._group.size == 1:
                layer.weight.grad = saved
            else:
                self._merged[name] = saved
