"""A model whose blocks stay in memory-mapped files, except while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

Change = Callable[[str, Tensor], Tensor]
"""Name and stored tensor of a parameter -> the tensor to write instead."""


class Streamed:
    """Decides which weights of a model are in memory.

    A parameter of a block is a view of its file, in the file's type, which the system can page out. Inside `resident`
    it is a copy in float32 on `device`, since passes compute there and in float32.
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
        """rows: lists of blocks, in the order in which a pass calls them. stored: parameter -> its view of the file.
        head: the module before which a pass ends, since nothing behind it is pruned. write: writes the files again with
        changed tensors. size: bytes of the files.
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
        """Inside, the weights of one block are in memory."""
        own = [p for p in self.blocks[number].parameters() if p in self._stored]
        for parameter in own:
            # A copy also where the type is the same: its memory is laid out as in a model in one piece, so bits agree.
            parameter.data = self._stored[parameter].to(self.device, torch.float32, copy=True)
        try:
            yield
        finally:
            for parameter in own:
                parameter.data = self._stored[parameter]
