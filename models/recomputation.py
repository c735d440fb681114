"""Backward passes that hold one block's activations at a time, and compute them a second time to do so.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; a third more computing, and the same gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from models.repeated_blocks import repeated_blocks


@contextmanager
def activations_recomputed(model: nn.Module) -> Iterator[None]:
    """Within, the repeated blocks of `model` keep only what goes into them; without such blocks nothing changes."""
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
