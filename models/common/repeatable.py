"""Deterministic sums on a CPU.

The gradient of `x[index]` adds several rows to one place where an index is repeated, as with hard negatives or regions
of one image. By default CPU threads add them in the order in which they arrive.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def repeat_on_cpu(on: bool = True, warn_only: bool = True, fill: bool = False) -> None:
    """Switch torch's deterministic algorithms on or off in this process; operations without one are unchanged.

    Not for a GPU, where they cost time. fill: also overwrite new memory, which slows every operation down.
    """
    torch.use_deterministic_algorithms(on, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@contextmanager
def repeated_on_cpu(device: torch.device) -> Iterator[None]:
    """Deterministic inside, if the device is a CPU; restored on exit."""
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
