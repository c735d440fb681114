"""Sparsifiers, which decide what happens to weights during a run: nothing, a fixed mask, or trained scores.

The training loop calls the same hooks of every sparsifier. No mask is multiplied in the forward pass: pruned weights
are zero in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.layers import PrunableLayer
from sparsity.mask import Mask

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number -> integers of that size."""


class Sparsifier:
    """The hooks of a run, with the defaults of a dense one.

    mask: the kept weights, once attached; None when dense. makes_mask: whether the run makes the mask.
    """

    mask: Mask | None = None
    makes_mask: ClassVar[bool] = False

    def attach(self, model: nn.Module) -> None:
        """Bind to a model, and apply the initial mask; InputError when it does not fit."""

    def trained(self, module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimizer trains, of the module with the model and its losses."""
        return module.named_parameters()

    def started(self, steps: int, epoch: int) -> None:
        """Start of training: number of steps, and of steps per epoch."""

    def after_backward(self) -> None:
        """All gradients of a step are computed, and not clipped yet."""

    def after_update(self, step: int) -> None:
        """After the optimizer's step number `step`, before gradients are cleared."""

    def settled(self, step: int) -> bool:
        """Whether the weights after `step` have the final sparsity: only then can they be the best of the run."""
        return True

    def check(self) -> None:
        """RuntimeError when a weight that is pruned is not exactly zero."""

    def finish(self) -> Mask | None:
        """End of training: the mask, if the run made one."""
        return None

    def fingerprint(self) -> str:
        """A hash of the current mask, to be compared between processes."""
        return ""

    def log(self) -> dict[str, Any]:
        """Extra fields for a row of log.jsonl."""
        return {}

    def identity(self) -> dict[str, Any]:
        """Extra fields of the run's identity."""
        return {"mask": None}

    def results(self) -> dict[str, Any]:
        """Extra fields of the run's results."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs besides the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""


class Dense(Sparsifier):
    """All weights are trained."""


class Fixed(Sparsifier):
    """A fixed mask: pruned weights are exactly zero at the start, and never change.

    A zero weight with a zero gradient stays zero under every optimizer that uses the gradient, its history and weight
    decay. `check` verifies this.
    """

    def __init__(self, mask: Mask):
        self._given = mask
        self.left_out: list[str] = []  # layers in the mask that the model does not prune
        self._bits: dict[str, Tensor] = {}
        self._wide: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._layers: dict[str, PrunableLayer] = {}
        self._followers: dict[str, nn.Module] = {}

    def attach(self, model: nn.Module) -> None:
        """Apply the mask; InputError when it does not fit."""
        self.mask = self._given.fitted(model)
        others = model.state_dict().keys() - set(self.mask)
        self.left_out = [name for name in self._given if name in others]
        self.mask.apply(model)
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
            assert self.mask is not None
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
    def after_backward(self) -> None:
        """Zero the gradients of pruned weights, before the norm is clipped and the optimizer steps.

        A bitwise AND with the mask also turns infinite gradients into zeros, and takes a quarter of the time of
        `masked_fill_` on a CPU.
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
                raise RuntimeError(
                    f"{moved} pruned weights of '{name}' have changed: this is a bug, here or in the optimizer"
                )

    def identity(self) -> dict[str, Any]:
        """The source of the mask, and its sparsity on this model."""
        assert self.mask is not None
        return {"mask": self.mask.source | {"sparsity": self.mask.sparsity()}}


class TrainedScores(Sparsifier):
    """Weights are frozen, and a score for each is trained: the weights with the largest |score| are kept.

    The forward pass uses the weights with the largest scores, and zeros elsewhere. The gradient passes straight through
    to the score: dL/dscore = dL/d(masked weight) weight (TAMT, Liu et al., NAACL 2022; edge-popup, Ramanujan et al.,
    CVPR 2020), times the score's sign for signed scores (HYDRA, Sehwag et al., NeurIPS 2020), which are ranked by
    |score|.
    """

    def __init__(
        self,
        layers: Mapping[str, PrunableLayer],
        scores: Mapping[str, Tensor],
        cut: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        signed: bool = False,
        pool: Callable[[str, Tensor], Tensor] = lambda name, gradient: gradient,
    ):
        """scores: initial values. cut: scores by layer -> True for the largest: a mask, or plain bits.

        signed: whether the gradient is that of |score|. pool(name, tensor): sums over the weights that share a score,
        where scores are not of the weights' shapes.

        Weights and scores are at least float32: steps of 1e-5 on values of 1e-2 vanish in half precision.
        """
        self._layers, self._cut, self._signed, self._pool = layers, cut, signed, pool
        self._weights = {name: _at_least_float(layer.weight.detach()) for name, layer in layers.items()}
        self.scores = {name: nn.Parameter(scores[name].to(weight)) for name, weight in self._weights.items()}
        self._prune()

    def _prune(self) -> None:
        self.mask = self._cut(self.scores)
        with torch.no_grad():
            for name, layer in self._layers.items():
                layer.weight.copy_(self._weights[name] * self.mask[name].to(layer.weight.device))

    def trained(self, module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        """The scores, under the names of their weights."""
        return self.scores.items()

    def after_backward(self) -> None:
        """Turn the gradient of each weight into that of its score."""
        self.take(lambda name: self._layers[name].weight.grad)
        for layer in self._layers.values():
            layer.weight.grad = None

    def take(self, gradient: Callable[[str], Tensor | None]) -> None:
        """Set the scores' gradients from those of the masked weights, by name."""
        for name, score in self.scores.items():
            given = gradient(name)
            if given is None:
                score.grad = None
                continue
            score.grad = self._pool(name, given.to(score.dtype) * self._weights[name])
            if self._signed:
                score.grad *= score.detach().sign()

    def after_update(self, step: int) -> None:
        """Apply the mask of the new scores to the weights."""
        self._prune()

    def state_dict(self) -> dict[str, Any]:
        """The scores."""
        return {"scores": {name: score.detach() for name, score in self.scores.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from saved scores."""
        for name, score in self.scores.items():
            score.copy_(state["scores"][name])
        self._prune()


def _at_least_float(weight: Tensor) -> Tensor:
    """A copy, of float32 where it is half precision."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
