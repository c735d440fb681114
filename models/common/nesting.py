"""Wrappers that training software adds to weights: outer keys, and prefixes of names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from console.errors import InputError

PLACES = ("model", "model_state", "student", "state_dict", "state_dict_ema", "model_ema", "net", "teacher")
"""Keys of training files under which weights are kept, in order of preference."""

PREFIXES = ("module.", "model.", "net.", "backbone.")
"""Before every name: of DataParallel and DistributedDataParallel, of Lightning, of trainers, of models with heads."""

COMPILED = "_orig_mod."
"""Anywhere in a name: torch.compile's, of the whole model or of a part."""

DEEPEST = 4  # largest number of nested wrappers

Value = TypeVar("Value")


def inner_state(content: Any, prefers: tuple[str, ...] = ()) -> tuple[Any, list[str]]:
    """The dict of named tensors inside a training file's content, and a description of where it was.

    Keys of `prefers`, then of PLACES, are followed as long as there is one; so is a key of any other name that alone
    holds named tensors. Content without such keys is returned as it is.
    """
    where: list[str] = []
    for _ in range(DEEPEST):
        if not isinstance(content, Mapping):
            break
        holders = [key for key, value in content.items() if _holds_tensors(value)]
        key = next((key for key in (*prefers, *PLACES) if key in holders), None)
        if key is None and len(holders) == 1 and not any(isinstance(value, Tensor) for value in content.values()):
            key = holders[0]
        if key is None:
            break
        beside = [str(other) for other in content if other != key]
        more = f" and {len(beside) - 5} more" if len(beside) > 5 else ""
        where.append(f"under '{key}'" + (f" (next to it: {', '.join(beside[:5])}{more})" if beside else ""))
        content = content[key]
    return content, where


def _holds_tensors(value: Any, depth: int = DEEPEST) -> bool:
    """Whether this is a dict of named tensors, or has one inside; an optimizer's state has numbers for names."""
    return isinstance(value, Mapping) and any(
        isinstance(key, str) and (isinstance(part, Tensor) or (depth > 1 and _holds_tensors(part, depth - 1)))
        for key, part in value.items()
    )


def named_tensors(content: Any, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a dict, sparse ones made dense, and the keys of what else is in it.

    InputError where there is no tensor.
    """
    keys = list(content) if isinstance(content, Mapping) else []
    state = {key: content[key] for key in keys if isinstance(key, str) and isinstance(content[key], Tensor)}
    if not state:
        has = (
            f"its keys are {', '.join(map(str, keys[:5]))}" if keys else f"it is a {type(content).__name__} without any"
        )
        raise InputError(f"{source} holds no dict of named tensors ({has}): give a model's state dict")
    state = {key: tensor if tensor.layout is torch.strided else tensor.to_dense() for key, tensor in state.items()}
    return state, [str(key) for key in keys if key not in state]


def unwrapped(
    state: dict[str, Value], met: Callable[[dict[str, Value]], Collection[str]]
) -> tuple[dict[str, Value], list[str], list[str]]:
    """A state dict without the prefixes of wrappers; the removed prefixes in words; keys outside of the wrapper.

    met: the model's own names that a state dict has tensors for. A prefix is removed only where most keys have it, and
    where without it all names met before are met, and more: so never where it is the model's own.
    """
    layers = [(state, [], [])]
    if plain := uncompiled(state):  # first, since the model's own prefix may stand before it
        layers.append((plain, [f"without '{COMPILED}' in names"], []))
    while len(layers) <= DEEPEST and (found := _without_prefix(layers[-1][0])):
        less, said, outside = found
        _, off, beside = layers[-1]
        layers.append((less, [*off, said], beside + outside))
    if len(layers) == 1:
        return layers[0]
    best, most = layers[0], set(met(state))
    for layer in layers[1:]:  # `module.net.` helps only once both are gone
        now = set(met(layer[0]))
        if now > most:
            best, most = layer, now
    return best


def uncompiled(state: Mapping[str, Value]) -> dict[str, Value] | None:
    """The state dict without torch.compile's prefix; None where no name has it, or two would become equal."""
    plain = {key.replace(COMPILED, ""): value for key, value in state.items()}
    return None if len(plain) < len(state) or plain.keys() == state.keys() else plain


def _without_prefix(state: dict[str, Value]) -> tuple[dict[str, Value], str, list[str]] | None:
    """A state dict without one wrapper's prefix, its description, and the keys outside; None where there is none."""
    for prefix in PREFIXES:
        inside = [key for key in state if key.startswith(prefix)]
        if 2 * len(inside) > len(state):
            others = [key for key in state if not key.startswith(prefix)]
            return {key.removeprefix(prefix): state[key] for key in inside}, f"without the prefix '{prefix}'", others
    return None
