"""The same bits from the same sums on a CPU.

The gradient of `x[index]` adds rows to the same place where an index is repeated, as those of hard negatives and of
regions of one image are. Several CPU threads add them in the order in which they arrive, unless told not to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def repeat_on_cpu(on: bool = True, warn_only: bool = True, fill: bool = False) -> None:
    """Switch torch's deterministic algorithms for this process; where an operation has none, nothing changes.

    Not for a GPU, where they cost time. fill: also overwrite new memory, which slows every operation down.
    """
    torch.use_deterministic_algorithms(on, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@contextmanager
def repeated_on_cpu(device: torch.device) -> Iterator[None]:
    """The same inside, if the device is a CPU; restored on exit."""
    if device.type != "cpu":
        yield
        return
    on, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    repeat_on_cpu()
    try:
        yield
    finally:
        repeat_on_cpu(on, warn_only, fill)
