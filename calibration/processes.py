"""The processes that share a calibration, and sums over them in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.common.gather import place


@dataclass(frozen=True)
class Group:
    """This process's rank among `size` processes."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Group:
        """The process group of torch.distributed; a group of one without it."""
        return cls(*place())

    def ranks_with_work(self, has_work: bool, device: torch.device, first: int = 0) -> list[int]:
        """The processes that have a unit in this round, in the order of units. first: the process with the first."""
        if self.size == 1:
            return [0] if has_work else []
        flags = [torch.zeros(1, device=device) for _ in range(self.size)]
        dist.all_gather(flags, torch.full((1,), float(has_work), device=device))
        return [rank for rank in (*range(first, self.size), *range(first)) if flags[rank]]

    def objects(self, mine: Any, ranks: list[int] | None = None) -> list[Any]:
        """The objects of the processes `ranks` (None: all), on every process; anything that pickles."""
        if self.size == 1:
            return [mine] if ranks is None else [mine for _ in ranks]
        given: list[Any] = [None] * self.size
        dist.all_gather_object(given, mine)
        return given if ranks is None else [given[rank] for rank in ranks]

    def from_rank(self, rank: int, mine: Tensor | None, like: Tensor) -> Tensor:
        """The tensor of process `rank`, on every process; `like` gives its shape, dtype and device."""
        if rank == self.rank:
            assert mine is not None
            tensor = mine.contiguous()
        else:
            tensor = torch.empty_like(like)
        if self.size > 1:
            dist.broadcast(tensor, src=rank)
        return tensor
