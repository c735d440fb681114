"""A model whose blocks lie in memory-mapped files but for the time in which they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

Change = Callable[[str, Tensor], Tensor]
"""Name of a parameter and its tensor as it is stored -> what is to be written in its place."""


class Streamed:
    """What of a model is in memory when.

    A parameter of a block is a view of its file, in the file's type, and takes no memory that others could need. Within
    `resident` it is a copy in float32 on `device`, in which passes compute.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        rows: Sequence[nn.ModuleList],
        stored: Mapping[nn.Parameter, Tensor],
        head: nn.Module | None,
        write: Callable[[Path, Change], None],
        size: int,
    ):
        """rows: lists of blocks, in the order in which a pass calls them. stored: parameters that are views, each with
        its own. head: what a pass ends before, since nothing behind it is pruned. write: the files again, changed;
        size: how many bytes they have.
        """
        self.blocks = [block for row in rows for block in row]
        self.head, self.write, self.size = head, write, size
        self._stored = stored

    def move(self, model: nn.Module, device: torch.device) -> None:
        """Let the passes of the model compute on a device; blocks come there one at a time, the rest at once."""
        self.device = device
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor not in self._stored:
                tensor.data = tensor.data.to(device)

    @contextmanager
    def resident(self, number: int) -> Iterator[None]:
        """Within this, the weights of one block are in memory."""
        own = [p for p in self.blocks[number].parameters() if p in self._stored]
        for parameter in own:
            # A copy also where the type is the same: the memory is then laid out as that of a model in one piece.
            parameter.data = self._stored[parameter].to(self.device, torch.float32, copy=True)
        try:
            yield
        finally:
            for parameter in own:
                parameter.data = self._stored[parameter]
