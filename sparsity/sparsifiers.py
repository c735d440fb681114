"""What happens to weights during a run: nothing, a fixed mask, or a mask whose scores are trained.

A training loop asks a sparsifier the same few things, whichever it is. No mask is multiplied in the forward pass:
pruned weights are zero in place.
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
    """The questions of a run, answered for a dense one.

    mask: which weights stay, once it is attached; None where all do. makes_mask: whether the run makes it.
    """

    mask: Mask | None = None
    makes_mask: ClassVar[bool] = False

    def attach(self, model: nn.Module) -> None:
        """Bind to a model, and prune what is pruned from the start; InputError when it does not fit."""

    def trained(self, module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimizer moves, of the module that is trained (the model and its losses)."""
        return module.named_parameters()

    def started(self, steps: int, epoch: int) -> None:
        """Training is about to begin, of so many steps, and so many an epoch."""

    def after_backward(self) -> None:
        """All gradients of a step are there; they are clipped next."""

    def after_update(self, step: int) -> None:
        """The optimizer has done step number `step`; its gradients are still there."""

    def settled(self, step: int) -> bool:
        """Whether the weights after `step` are as sparse as those that the run leaves: only then can they be best."""
        return True

    def check(self) -> None:
        """RuntimeError when a weight that is pruned is not exactly zero."""

    def finish(self) -> Mask | None:
        """Training has ended: the mask that the run made, where it made one."""
        return None

    def fingerprint(self) -> str:
        """Of the mask now, to be compared between processes."""
        return ""

    def log(self) -> dict[str, Any]:
        """What it adds to a row of log.jsonl."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What it adds to what defines the run."""
        return {"mask": None}

    def results(self) -> dict[str, Any]:
        """What it adds to the run's results."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs besides the weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""


class Dense(Sparsifier):
    """All weights are trained."""


class Fixed(Sparsifier):
    """Weights pruned by a mask are exactly zero at the start, and never move.

    A weight of zero whose gradient is zero stays zero under every optimizer that moves a weight by its gradient, its
    own history and its decay. `check` makes sure of it, instead of believing it.
    """

    def __init__(self, mask: Mask):
        self._given = mask
        self.left_out: list[str] = []  # layers that the mask prunes and the model does not
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

    def identity(self) -> dict[str, Any]:
        """Where the mask comes from, and how sparse it is on this model."""
        assert self.mask is not None
        return {"mask": self.mask.source | {"sparsity": self.mask.sparsity()}}


class TrainedScores(Sparsifier):
    """Weights are frozen, and a score behind each of them is trained: the largest |score| stay.

    The forward pass has the weight where its score is among the largest, else zero. The gradient passes straight
    through to the score: dL/dscore = dL/d(masked weight) weight (TAMT, Liu et al., NAACL 2022; edge-popup, Ramanujan et
    al., CVPR 2020), times the score's sign where scores have one (HYDRA, Sehwag et al., NeurIPS 2020): what stays is
    chosen by |score|.
    """

    def __init__(
        self,
        layers: Mapping[str, PrunableLayer],
        scores: Mapping[str, Tensor],
        cut: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
        signed: bool = False,
        pool: Callable[[str, Tensor], Tensor] = lambda name, gradient: gradient,
    ):
        """scores: where training starts from. cut: scores by layer -> True for the largest: a mask, or plain bits.

        signed: whether the gradient is that of |score|. pool(name, tensor): sums over the weights that share a score,
        where scores are not of the weights' shapes.

        Weights and scores are at least float32 here: steps of 1e-5 on numbers of 1e-2 vanish in half precision.
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
        """The gradient of each weight becomes that of its score."""
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
        """Put the mask of the new scores into the weights."""
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
