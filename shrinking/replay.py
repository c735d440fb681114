"""Skip computations that a removal cannot change: module calls with the same inputs as in the dense model.

Removing a part of layer l changes nothing before it. So the dense model's calls on a batch are recorded, and after a
removal a module with equal inputs returns the recorded output. Comparing inputs instead of positions also works for
separate towers, for layers that read both, and for layers that are called several times. Results equal those of a full
pass up to rounding, since a linear layer with removed inputs subtracts their contribution from the recorded output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Replay:
    """Records and replays the calls of some modules, inside `watching()`, under `torch.no_grad()`, in eval mode.

    For each batch: calls inside `record` are computed and recorded; after `without`, modules with one of the given
    tensors are computed, and others are replayed if their inputs are equal.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        """modules: whose calls are recorded; one may contain others."""
        self._holds = {module: _tensors_in(module) for module in modules}
        self._calls: dict[nn.Module, list[tuple[Any, Any, list[tuple[Tensor, int]]]]] = {}
        self._computed: set[nn.Module] = set()
        self._less: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # linear layer -> removed inputs, their columns
        self._recording = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, replace the modules' `forward`."""
        own = {module: module.__dict__["forward"] for module in self._holds if "forward" in module.__dict__}
        try:
            for module in self._holds:
                module.forward = self._before(module, module.forward)
            yield
        finally:
            for module in self._holds:
                del module.forward
            for module, forward in own.items():
                module.forward = forward
            self._calls = {}

    @contextmanager
    def record(self) -> Iterator[None]:
        """Forget the last batch, and record the calls made here."""
        self._calls, self._computed, self._recording = {module: [] for module in self._holds}, set(), True
        self._less = {}
        try:
            yield
        finally:
            self._recording = False

    def without(self, tensors: Iterable[int], columns: Iterable[tuple[Tensor, int, Tensor]] = ()) -> None:
        """From now on, recompute the modules that hold one of these tensors (by id).

        columns: tensors whose entries along an axis will be zero. If they are inputs of a linear layer, their
        contribution is subtracted from the recorded output.
        """
        changed = set(tensors)
        self._computed = {module for module, held in self._holds.items() if held & changed}
        gone = {id(tensor): (entries, tensor.detach()[:, entries]) for tensor, axis, entries in columns if axis == 1}
        self._less = {
            module: gone[id(module.weight)]
            for module in self._computed
            if type(module) is nn.Linear and id(module.weight) in gone
        }

    def _before(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def replayed(*args: Any, **kwargs: Any) -> Any:
            if module not in self._computed or module in self._less:
                for inputs, output, versions in self._calls.get(module, ()):
                    # A tensor that was changed in place since then no longer has the recorded value.
                    if all(t._version == version for t, version in versions) and _equal((args, kwargs), inputs):
                        if module not in self._less:
                            return output
                        entries, columns = self._less[module]
                        return output - F.linear(args[0].index_select(-1, entries), columns)
            output = forward(*args, **kwargs)
            if self._recording:
                seen = [(t, t._version) for t in _tensors((args, kwargs, output))]
                self._calls[module].append(((args, kwargs), output, seen))
            return output

        return replayed


def _tensors_in(module: nn.Module) -> set[int]:
    return {id(tensor) for tensor in (*module.parameters(), *module.buffers())}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def _equal(a: Any, b: Any) -> bool:
    """Whether arguments are equal; objects other than tensors, containers, numbers and texts must be identical."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, bool | int | float | str) and type(a) is type(b) and a == b
