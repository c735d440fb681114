"""Second moments of each layer's inputs: H = sum over real tokens of x x', the Hessian of its squared error."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from console.errors import InputError
from models.base import Batch, PrunableModel
from pruners.group import Group
from pruners.layer_inputs import rows, watch_inputs, width
from pruners.statistics import Layers


class InputHessians:
    """A statistic: H [i, i] float32 of each layer; layers that read the same tensor (q, k, v) share one."""

    follows_state = False

    def __init__(self, model: PrunableModel, layers: Layers):
        self._model, self._layers = model, layers
        self._owner: dict[str, str] = {}  # layer -> the layer whose H it shares
        self._sums: dict[str, Tensor] = {}
        self._fresh: dict[str, Tensor] = {}
        self._last: tuple[Tensor, str] | None = None

    def update(self, batch: Batch) -> None:
        """Forward the batch without losses, adding up x x' at every layer's input."""
        watch_inputs(self._model, self._layers, batch, self._add)
        self._last = None

    def _add(self, name: str, layer: nn.Module, x: Tensor, real: Tensor | None) -> None:
        shared = self._last is not None and self._last[0] is x and isinstance(layer, nn.Linear)
        owner = self._owner.setdefault(name, self._last[1] if shared else name)
        self._last = (x, owner)
        if owner != name:
            return
        tokens = rows(layer, x, real)
        total = self._fresh.get(name)
        self._fresh[name] = tokens.t() @ tokens if total is None else total.addmm_(tokens.t(), tokens)

    def pass_by(self, batch: Batch) -> None:
        """Moments of a unit depend on that unit alone."""

    def merge(self, group: Group, ranks: list[int]) -> None:
        """Add the last unit of each process, in turn."""
        for name, layer in self._layers.items():
            if group.size == 1 and name not in self._fresh:
                continue
            i = width(layer)
            like = self._sums.get(name)
            if like is None:
                like = self._sums[name] = torch.zeros(i, i, device=layer.weight.device)
            for rank in ranks:
                part = self._fresh.get(name, torch.zeros_like(like))
                like += group.from_rank(rank, part, like=like)
        self._fresh = {}

    def of(self, name: str) -> Tensor:
        """H [i, i] of a layer; InputError when it never saw an input."""
        owner = self._owner.get(name, name)
        if owner not in self._sums or not self._sums[owner].any():
            raise InputError(f"layer '{name}' saw no input during calibration: exclude it or use it in `observe`")
        return self._sums[owner]

    def state(self) -> dict[str, Tensor]:
        """The moments, and which layers share them."""
        names = list(self._layers)
        owners = torch.tensor([names.index(self._owner.get(name, name)) for name in names])
        return self._sums | {"owners": owners}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from saved moments."""
        names = list(self._layers)
        self._owner = {name: names[i] for name, i in zip(names, state["owners"].tolist(), strict=True)}
        device = next(iter(self._layers.values())).weight.device
        self._sums = {name: tensor.to(device) for name, tensor in state.items() if name != "owners"}
