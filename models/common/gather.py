"""Collect contrastive features of all processes, as the published training does.

Gradients flow to the local slice only: each process learns from its own pairs, against everyone's negatives.
`training/negatives.py` collects over the passes of an optimizer step, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

Gather = Callable[[Tensor], Tensor]


def no_gather(features: Tensor) -> Tensor:
    """One process: its own features [b, e] are all there are."""
    return features


def place() -> tuple[int, int]:
    """This process's rank, and how many processes there are."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def of_all_processes(features: Tensor) -> list[Tensor]:
    """Features [b, e] of this process -> those of each, in the order of ranks, without graph; same b everywhere."""
    world = place()[1]
    if world == 1:
        return [features.detach()]
    parts = [torch.empty_like(features, requires_grad=False) for _ in range(world)]
    dist.all_gather(parts, features.detach().contiguous())
    return parts


def gather_processes(features: Tensor) -> Tensor:
    """Features [b, e] of this process -> [world * b, e] of all, in the order of ranks; same b everywhere."""
    rank, world = place()
    if world == 1:
        return features
    parts = of_all_processes(features)
    parts[rank] = features
    return torch.cat(parts)


def from_first_process(tensors: Iterable[Tensor]) -> None:
    """Copy what the first process has into the same tensors of all."""
    if place()[1] > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def add_processes(tensor: Tensor) -> Tensor:
    """A tensor of which each process has a share, and zeros elsewhere -> the whole one, on all; same shape on each."""
    if place()[1] > 1:
        dist.all_reduce(tensor)  # NCCL takes contiguous tensors only
    return tensor
