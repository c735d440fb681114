"""Second moments of each layer's inputs: H = sum over real tokens of x x', the Hessian of its squared error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from calibration.layer_inputs import Choice, Read, SharedInput, rows, watch_inputs
from calibration.processes import Group
from calibration.statistics import Layers, Statistic, check_share, never_met, no_such_token
from calibration.stream import device_of
from models.base import Batch, Model
from models.layers import blocks_of

Readers = tuple[tuple[str, int], ...]
"""Layers (and blocks of their rows) that read the same input tensor."""


class InputHessians(Statistic):
    """A statistic: H [i, i] float32 of each layer, summed over all its uses.

    If several layers read the same tensor (q, k and v), the product is computed and stored once: there is a sum for
    each set of readers, and a layer's H is the sum over its sets. Most layers have one set; a layer that also reads
    another tensor alone has two.
    """

    follows_state = False

    def __init__(
        self,
        model: Model,
        layers: Layers,
        run: Callable[[Batch], object] | None = None,
        constant: bool = False,
        share: float | None = None,
        choice: Choice | None = None,
    ):
        """layers: which to collect. run: the forward pass (None: `observe`). constant: append a 1 to each input, so
        that H also contains the sums of inputs and their number. share, choice: as of `InputNorms`; either kind that
        counts has its own H, so that a share between 0 and 1 needs twice the memory.
        """
        check_share(model, share)
        weights = {} if share is None else {"text": 1 - share, "image": share}
        self._weights = {kind: weight for kind, weight in weights.items() if weight}
        self._model, self._layers, self._run, self._constant = model, layers, run, constant
        self.choice = choice
        self._sums: dict[Readers, Tensor] = {}
        self._fresh: dict[Readers, Tensor] = {}
        self._shared = SharedInput()
        self._readers: list[tuple[str, int]] = []  # so far, of the latest input
        self._product: Tensor | None = None  # x x' of the latest input

    def update(self, batch: Batch) -> None:
        """Forward the batch without losses, adding up x x' at every layer's input."""
        watch_inputs(self._model, batch, self.look, self._run, self.choice)
        self.close()

    def close(self) -> None:
        """Let go of the last input, whose product goes to those that read it."""
        self._close()
        self._shared.forget()

    def drop(self) -> None:
        """Forget the products of this turn."""
        self._fresh = {}

    def forget(self, names: Iterable[str]) -> None:
        """Free the sums of layers that are done with, and look at them no more."""
        gone = set(names)
        self._layers = {name: layer for name, layer in self._layers.items() if name not in gone}
        self._sums = {
            readers: total for readers, total in self._sums.items() if not gone.issuperset(n for n, _ in readers)
        }

    def look(self, read: Read) -> None:
        """Multiply an input with itself, once for all that read it."""
        if read.name not in self._layers:
            return
        again = self._shared.again(read)
        reader = read[:2]
        if not again or reader in self._readers:  # a layer that is used twice counts twice
            self._close()
            self._product = self._moments(read)  # at once: the next operation may change x in place
        self._readers.append(reader)

    def _moments(self, read: Read) -> Tensor:
        """x x' [i, i] of an input; of one with tokens of both kinds [k, i + 1, i + 1], by kind, with their number."""
        x, apart = rows(read), bool(self._weights) and read.image is not None
        if self._constant or apart:
            one = x.new_ones(len(x), 1) if read.real is None else read.real.reshape(-1, 1).to(x)
            x = torch.cat([x, one], dim=1)
        if not apart:
            return x.t() @ x
        assert read.image is not None
        image = read.image.flatten().bool()
        kinds = [x[image if kind == "image" else ~image] for kind in self._weights]
        return torch.stack([tokens.t() @ tokens for tokens in kinds])

    def _close(self) -> None:
        """Add the product of the latest input to the sum of its readers."""
        if self._readers:
            readers = tuple(self._readers)
            total = self._fresh.get(readers)
            self._fresh[readers] = self._product if total is None else total.add_(self._product)
            self._readers, self._product = [], None

    def merge(self, group: Group, ranks: list[int]) -> None:
        """Add the last unit of each process, in rank order; units may reach different layers."""
        shapes = {readers: product.shape for readers, product in self._fresh.items()}
        for rank, sets in zip(ranks, group.objects(shapes, ranks), strict=True):
            for readers, shape in sets.items():
                like = self._sums.get(readers)
                if like is None:
                    like = self._sums[readers] = torch.zeros(shape, device=device_of(self._model))
                like += group.from_rank(rank, self._fresh.get(readers), like=like)
        self._fresh = {}

    @property
    def met(self) -> set[str]:
        """Layers that were called."""
        return {name for readers in self._sums for name, _ in readers}

    def of(self, name: str, block: int = 0) -> Tensor:
        """H [i, i] of what a layer (or a block of its rows) reads; InputError when it was never called."""
        parts = [self._sums[readers] for readers in sorted(self._sums) if (name, block) in readers]
        if not parts:
            raise never_met(name)
        total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)
        if total.dim() == 3:
            total = self._weighted(name, total)
        # Squares below float32's range are rounding errors: treat the input as zero.
        return torch.zeros_like(total) if total.diagonal().max() < torch.finfo(total.dtype).tiny else total

    def _weighted(self, name: str, kinds: Tensor) -> Tensor:
        """H [i, i] in which the kinds of tokens have their weights, of as many tokens as there were of these kinds."""
        counts = kinds[:, -1, -1]
        total = torch.zeros_like(kinds[0, :-1, :-1])
        for (kind, weight), moments, count in zip(self._weights.items(), kinds, counts, strict=True):
            if count == 0:
                raise no_such_token(name, kind)
            total += weight * moments[:-1, :-1] * (counts.sum() / count)
        return total

    def by_rows(self, name: str) -> list[tuple[slice, Tensor]]:
        """Rows of the layer's matrix with the H of what they read: one pair, unless they read different inputs."""
        layer = self._layers[name]
        count = blocks_of(layer)
        together = {tuple(block for n, block in readers if n == name) for readers in self._sums} - {()}
        if together <= {tuple(range(count))}:
            return [(slice(None), self.of(name))]
        size = len(layer.weight) // count
        return [(slice(block * size, (block + 1) * size), self.of(name, block)) for block in range(count)]

    def without_input(self, among: Iterable[str] | None = None) -> list[str]:
        """Layers that were called, but with no tokens or only zeros."""
        return [name for name in (self._layers if among is None else among) if not self.of(name).any()]

    def state(self) -> dict[str, Tensor]:
        """The sums by their readers."""
        return {json.dumps(readers): total for readers, total in self._sums.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Resume from saved sums."""
        device = device_of(self._model)
        self._sums = {tuple(map(tuple, json.loads(key))): total.to(device) for key, total in state.items()}
