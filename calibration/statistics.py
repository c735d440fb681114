"""Statistics of one pass over the data: input norms of layers, or mean gradients.

Each statistic keeps running sums only. `update` sees one unit, `merge` adds the units of all processes
in their order (see calibration.stream), `state` and `restore` carry the sums over an interruption.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from calibration.layer_inputs import Choice, Read, SharedInput, squares, squares_by_kind, watch_inputs
from calibration.processes import Group
from calibration.stream import device_of
from console.errors import InputError
from models.base import Batch, Model
from models.layers import PrunableLayer, blocks_of, width

Layers = dict[str, PrunableLayer]
UNITS = "units of gradients"  # key of the count, next to the layers' sums


class Statistic(Protocol):
    """Running sums over calibration units.

    follows_state: whether a unit's result depends on the units before it (a model with queues or momentum); then
    `pass_by` is called for the units of other processes.
    """

    follows_state: bool

    def update(self, batch: Batch) -> None:
        """Add one unit."""

    def pass_by(self, batch: Batch) -> None:
        """Update the model's state for another process's unit."""

    def merge(self, group: Group, ranks: list[int]) -> None:
        """Add what the processes `ranks` saw since the last merge, in the order of units."""

    def state(self) -> dict[str, Tensor]:
        """The sums, to be saved."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore saved sums."""


class InputSums(Statistic):
    """A statistic of inputs that is one tensor of sums, in which units do not depend on one another.

    Passes in lock step call `close` when another pass takes its turn and before `merge`. choice: of the tokens it sees.
    """

    follows_state = False
    choice: Choice | None = None

    def __init__(self, model: Model, *shape: int):
        """shape: of the sums."""
        self._model = model
        self._sums = torch.zeros(shape, dtype=torch.float64, device=device_of(model))
        self._fresh = torch.zeros_like(self._sums)

    def update(self, batch: Batch) -> None:
        """Forward the batch without losses."""
        watch_inputs(self._model, batch, self.look, choice=self.choice)
        self.close()

    def look(self, read: Read) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing is held."""

    def drop(self) -> None:
        """Forget the sums of this turn."""
        self._fresh.zero_()

    def merge(self, group: Group, ranks: list[int]) -> None:
        """Add the last unit of each process, in rank order."""
        for rank in ranks:
            self._sums += group.from_rank(rank, self._fresh, like=self._sums)
        self._fresh.zero_()

    def state(self) -> dict[str, Tensor]:
        """The sums."""
        return {"sums": self._sums}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Resume from saved sums."""
        self._sums.copy_(state["sums"])


class InputNorms(InputSums):
    """Norm of each input channel of each layer: a_i = sqrt(sum over real tokens of x_i^2 / sequences).

    MULTIFLOW's activation statistic (CVPR 2024, eq. 3): float64 sums over all uses of a weight, padding does not count.
    Of layers that read text and images as one sequence, it also has the sums of either kind of token.
    """

    def __init__(self, model: Model, layers: Layers, share: float | None = None, choice: Choice | None = None):
        """share: weight of image tokens where layers read both kinds, text tokens have the rest; None: all count alike.
        choice: of those that count.

        InputError for a share where no layer reads both.
        """
        check_share(model, share)
        self._model, self._layers = model, layers
        self._share, self.choice = share, choice
        self._offsets: dict[tuple[str, int], int] = {}
        length = 0
        for name, layer in layers.items():
            for block in range(blocks_of(layer)):
                self._offsets[name, block] = length
                length += width(layer) + 2  # sums of channels, the number of sequences, the number of calls
                length += self._room(width(layer))
        super().__init__(model, length)
        self._shared = SharedInput()
        self._squares: Tensor | None = None
        self._more: Tensor | None = None

    def _room(self, channels: int) -> int:
        """How many more sums a layer has: those of the channels and the number of tokens, of text and of images."""
        return 0 if self._model.image_tokens is None else 2 * (channels + 1)

    def _besides(self, read: Read) -> Tensor | None:
        """The further sums of an input, as `_room` counts them; None: it has none."""
        return squares_by_kind(read)

    def close(self) -> None:
        """Let go of the last input."""
        self._shared.forget()

    def look(self, read: Read) -> None:
        """Add up squares of an input."""
        if not self._shared.again(read):
            self._squares = squares(read)
            self._more = self._besides(read)
        assert self._squares is not None
        start, i = self._offsets[read.name, read.block], len(self._squares)
        self._fresh[start : start + i] += self._squares
        self._fresh[start + i] += read.sequences
        self._fresh[start + i + 1] += 1
        if self._more is not None:
            self._fresh[start + i + 2 : start + i + 2 + self._more.numel()] += self._more.flatten()

    def norms(self, name: str, block: int = 0) -> Tensor:
        """a [i], float32, of what the layer (or a block of its rows) reads; InputError when it was never called.

        A layer without tokens, such as an unused expert, gets ones: its inputs cannot be ranked, and the rest of the
        score decides.
        """
        start, i = self._offsets[name, block], width(self._layers[name])
        sequences, calls = self._sums[start + i], self._sums[start + i + 1]
        if calls == 0:
            raise never_met(name)
        if sequences == 0:
            return torch.ones(i, device=self._sums.device)
        sums = self._sums[start : start + i]
        if self._share is not None:
            kinds = self._sums[start + i + 2 : start + 3 * i + 4].view(2, i + 1)
            sums = _shared(name, kinds, self._share) if kinds[:, i].any() else sums
        return (sums / sequences).sqrt().float()

    def by_rows(self, name: str) -> list[tuple[slice, Tensor]]:
        """Rows of the layer's matrix with the norms a [i] of what they read: one pair, if all read the same."""
        layer = self._layers[name]
        found = [self.norms(name, block) for block in range(blocks_of(layer))]
        if all(torch.equal(norm, found[0]) for norm in found[1:]):
            return [(slice(None), found[0])]
        rows = len(layer.weight) // len(found)
        return [(slice(block * rows, (block + 1) * rows), norm) for block, norm in enumerate(found)]

    def without_input(self) -> list[str]:
        """Layers that were called, but without tokens."""
        at = {name: self._offsets[name, 0] + width(layer) for name, layer in self._layers.items()}
        return [name for name, i in at.items() if self._sums[i] == 0 and self._sums[i + 1] > 0]


def _shared(name: str, kinds: Tensor, share: float) -> Tensor:
    """Sums over channels [i] as if image tokens were this share of all tokens, and text tokens the others.

    kinds [2, i + 1]: sums and number of tokens of text and of images. With the share that images have, these are the
    sums over all tokens.
    """
    total, tokens = 0, kinds[:, -1]
    for what, sums, weight in zip(("text", "image"), kinds, (1 - share, share), strict=True):
        if weight == 0:
            continue
        if sums[-1] == 0:
            raise no_such_token(name, what)
        total = total + weight * sums[:-1] / sums[-1] * tokens.sum()
    return total


def check_share(model: Model, share: float | None) -> None:
    """InputError for a share of image tokens where no layer of the model reads both kinds."""
    if share is not None and model.image_tokens is None:
        raise InputError(
            "--tokens weights text and image tokens apart, but no layer of this model reads both as one sequence: "
            "leave it out"
        )


def no_such_token(name: str, what: str) -> InputError:
    """The error for a layer that read no token of a kind that counts."""
    return InputError(
        f"layer '{name}' read no {what} token during calibration, which --tokens gives a weight: give batches with "
        "both kinds, or leave --tokens out"
    )


def never_met(name: str) -> InputError:
    """The error for a layer that no pass called."""
    return InputError(
        f"layer '{name}' received no input during calibration: use it in `observe`, exclude it, or give more batches "
        "if only some batches reach it"
    )


def backward(loss: Tensor) -> None:
    """Back-propagate a loss; InputError where it has no gradient, or torch cannot find it."""
    if not loss.requires_grad:
        raise InputError("the model's loss has no gradient with respect to the prunable weights")
    try:
        loss.backward()
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise InputError(
            "the model's loss cannot be differentiated: a tensor that its backward pass needs is changed in place (by "
            "an activation with inplace=True, or `x += ...`); replace that operation, or choose a pruner without "
            "gradients"
        ) from error


def with_gradient(layers: Layers) -> set[str]:
    """Names of the layers that the latest losses have reached."""
    return {name for name, layer in layers.items() if layer.weight.grad is not None}


class MeanGradients:
    """Sum over units of the gradient of the loss with respect to each prunable weight.

    The sum is accumulated in the parameters' `.grad`, so that it needs no memory beyond a backward pass.
    """

    def __init__(self, model: Model, layers: Layers, group: Group):
        self.follows_state = model.follows_state
        self._model = model
        self._layers = layers
        self._group = group
        self._merged: dict[str, Tensor] = {}  # sums outside of .grad, with several processes only
        self._units = 0

    def update(self, batch: Batch) -> None:
        """Back-propagate the pretraining loss of one unit."""
        backward(self._model.loss(batch))

    def pass_by(self, batch: Batch) -> None:
        """Update queues and momentum copies as for any batch."""
        self._model.pass_by(batch)

    def merge(self, group: Group, ranks: list[int]) -> None:
        """One process accumulates in `.grad`; several add layer by layer, in the order of units."""
        self._units += len(ranks)
        if group.size == 1:
            return
        given = group.objects(with_gradient(self._layers), ranks)
        for name, layer in self._layers.items():
            for rank, reached in zip(ranks, given, strict=True):
                if name in reached:
                    merged = self._merged.setdefault(name, torch.zeros_like(layer.weight))
                    merged += group.from_rank(rank, layer.weight.grad, like=merged)
            layer.weight.grad = None

    def mean(self, name: str) -> Tensor:
        """Mean gradient [o, i] of a layer, in the sum's own memory; InputError when no loss reached the layer.

        Call it once: the sum is overwritten.
        """
        return self._sum(name).div_(self._units)

    def _found(self, name: str) -> Tensor | None:
        return self._layers[name].weight.grad if self._group.size == 1 else self._merged.get(name)

    def _sum(self, name: str) -> Tensor:
        if (grad := self._found(name)) is None:
            raise InputError(f"the loss gives no gradient to '{name}': exclude the layer or let the loss use it")
        return grad

    def all_zero(self, among: Iterable[str] | None = None) -> list[str]:
        """Layers that the loss does not depend on, or that no sample reached."""
        return [name for name in (self._layers if among is None else among) if not self._sum(name).any()]

    def clear(self) -> None:
        """Reset all sums."""
        self._merged, self._units = {}, 0
        for layer in self._layers.values():
            layer.weight.grad = None

    def state(self) -> dict[str, Tensor]:
        """The sums of the layers that a loss has reached so far, and the number of units."""
        sums = {name: total for name in self._layers if (total := self._found(name)) is not None}
        return sums | {UNITS: torch.tensor(self._units)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Resume from saved sums."""
        self._units = int(state[UNITS])
        for name in state.keys() & self._layers.keys():
            layer = self._layers[name]
            saved = state[name].to(layer.weight.device)
            if self._group.size == 1:
                layer.weight.grad = saved
            else:
                self._merged[name] = saved
