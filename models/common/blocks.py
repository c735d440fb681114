"""Rows of equal blocks, which take nearly all of a model's time and memory.

This module finds them, and provides gradient checkpointing, which holds one block's activations at a time and computes
them twice (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016): a third more computation, and the same
gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch.utils.checkpoint
from torch import nn
from torch.utils.checkpoint import checkpoint


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of lists of two or more modules of one class, with linear layers inside, each once.

    Lists inside of a member do not count.
    """
    found: list[nn.Module] = []
    inside: set[int] = set()
    for parent in model.modules():  # outer modules come before what they hold
        if id(parent) in inside or not isinstance(parent, nn.ModuleList | nn.Sequential):
            continue
        members = list(parent)
        if len(members) > 1 and len({type(member) for member in members}) == 1 and all(map(_has_linear, members)):
            found += [member for member in dict.fromkeys(members) if id(member) not in inside]
            inside |= {id(module) for member in members for module in member.modules()}
    return found


def _has_linear(member: nn.Module) -> bool:
    return any(isinstance(module, nn.Linear) for module in member.modules() if module is not member)


@contextmanager
def activations_recomputed(model: nn.Module) -> Iterator[None]:
    """Inside, the repeated blocks of `model` store their inputs only; without such blocks nothing changes."""
    blocks = repeated_blocks(model)
    own = [block.__dict__.get("forward") for block in blocks]
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward
            else:
                block.forward = forward


class _NotReentrant:
    """Replaces torch's CheckpointFunction (`reentrant_checkpoints_replaced`)."""

    @staticmethod
    def apply(function: Any, preserve: bool, *inputs: Any) -> Any:
        """The same, non-reentrant."""
        return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=preserve)


@contextmanager
def reentrant_checkpoints_replaced() -> Iterator[None]:
    """Inside, reentrant gradient checkpoints are non-reentrant: the same numbers, and gradients in any case.

    A reentrant checkpoint gives its weights no gradient where none of its inputs requires one. None does while pruning,
    when only prunable weights require gradients, since all before the first block is frozen.
    """
    original = torch.utils.checkpoint.CheckpointFunction
    torch.utils.checkpoint.CheckpointFunction = _NotReentrant
    try:
        yield
    finally:
        torch.utils.checkpoint.CheckpointFunction = original
