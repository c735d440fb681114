"""Skip tokens that a score does not read in the linear layers of a model's last layer.

The tokens that it reads (the class token, a text's end) are found by the gradient of a run's output with respect to the
output of each linear layer. As a check, noise at all other tokens must not change the output. Keys, values and averaged
states are read at all tokens: there, none is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from models.base import Model
from models.parts import layers

LOUD = 10.0
"""Standard deviation of the noise; states are about 1."""


class Pooled:
    """Linear layers that compute only some tokens, and return zeros elsewhere; used within `watching()`."""

    def __init__(self, model: Model):
        self._lists = [model.inner.get_submodule(path) for row in layers(model) for path in row.lists]
        inside = [part for row in self._lists for layer in row for part in layer.modules()]
        self._linear = list(dict.fromkeys(part for part in inside if type(part) is nn.Linear))
        self._found: dict[tuple[int, int], dict[nn.Module, Tensor]] = {}  # run, batch -> layer -> tokens [n], flat
        self._now: dict[nn.Module, Tensor] = {}
        self._noise = False
        self._checked: set[int] = set()
        self._useless: set[int] = set()  # runs whose output the noise changed: all tokens are computed

    def at(self, run: int, batch: int) -> None:
        """Select the run and batch of the following calls."""
        self._now = self._found.get((run, batch), {})

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, replace the linear layers' `forward`."""
        for layer in self._linear:
            layer.forward = partial(self._some, layer, layer.forward)
        try:
            yield
        finally:
            for layer in self._linear:
                del layer.forward

    def _some(self, layer: nn.Linear, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        tokens = self._now.get(layer)
        if tokens is None:
            return forward(x)
        if self._noise:
            y = forward(x).flatten(0, 1)
            noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y) * LOUD
            return (y + noise.index_fill_(0, tokens, 0)).unflatten(0, x.shape[:2])
        some = forward(x.flatten(0, 1).index_select(0, tokens))
        full = some.new_zeros(x.shape[0] * x.shape[1], some.shape[1])
        return full.index_copy_(0, tokens, some).unflatten(0, x.shape[:2])

    def find(self, run: int, batch: int, compute: Callable[[], Tensor]) -> None:
        """Find the tokens that a run reads of a batch. compute: returns its rows; called twice for the first batch."""
        if run in self._useless:
            return
        rows, read = self._read(compute)
        found = {layer: tokens.flatten().nonzero()[:, 0] for layer, tokens in read.items() if not tokens.all()}
        if found and run not in self._checked:
            self._now, self._noise = found, True
            try:
                same = torch.allclose(compute(), rows, rtol=1e-5, atol=1e-6)
            finally:
                self._now, self._noise = {}, False
            (self._checked if same else self._useless).add(run)
        if run not in self._useless:
            self._found[run, batch] = found

    def _read(self, compute: Callable[[], Tensor]) -> tuple[Tensor, dict[nn.Module, Tensor]]:
        """The rows, and of each linear layer of the last layers the tokens that they depend on: bool [b, t]."""
        outputs: dict[nn.Module, list[Tensor]] = {}
        handles = []
        for row in self._lists:
            inside = {part for layer in row for part in layer.modules()} & set(self._linear)

            def enter(layer: nn.Module, args: tuple, kwargs: dict, inside: set = inside) -> tuple[tuple, dict]:
                for part in inside & outputs.keys():
                    outputs[part] = [
                        y.detach() for y in outputs[part]
                    ]  # an earlier layer's: only the last one is looked at
                return tuple(map(_leaf, args)), {name: _leaf(value) for name, value in kwargs.items()}

            def note(layer: nn.Module, args: tuple, output: Tensor) -> None:
                if output.requires_grad:
                    output.retain_grad()
                outputs.setdefault(layer, []).append(output)

            handles += [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in row]
            handles += [layer.register_forward_hook(note) for layer in inside]
        try:
            # Parameters require no gradients and layers detach their inputs, so that only the last layer has a graph.
            with torch.enable_grad():
                rows = compute()
                if rows.requires_grad:
                    rows.backward(torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)).to(rows))
        finally:
            for handle in handles:
                handle.remove()
        once = {layer: calls[0] for layer, calls in outputs.items() if len(calls) == 1}
        read = {layer: y.grad.ne(0).any(-1) for layer, y in once.items() if y.dim() == 3 and y.grad is not None}
        return rows.detach(), read


def _leaf(value: object) -> object:
    """Make states [b, t, d] a leaf that requires gradients; return all else unchanged."""
    states = isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 3
    return value.detach().requires_grad_() if states else value
