"""Collect contrastive features of all processes, as the published training does.

Gradients flow to the local slice only: each process learns from its own pairs, against everyone's negatives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

Gather = Callable[[Tensor], Tensor]


def no_gather(features: Tensor) -> Tensor:
    """One process: its own features [b, e] are all there are."""
    return features


def gather_processes(features: Tensor) -> Tensor:
    """Features [b, e] of this process -> [world * b, e] of all, in the order of ranks; same b everywhere."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return features
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features.detach().contiguous())
    parts[dist.get_rank()] = features
    return torch.cat(parts)
