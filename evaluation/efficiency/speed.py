"""Timings of several functions, alternating within one run, and layers in torch's 2:4 format, which skips zeros.

Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021 (two of every four inputs are kept); CUDA devices have
such matrix products since Ampere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from console.errors import InputError
from models.base import Model
from models.layers import layer_uses
from sparsity.groups import check_pattern
from sparsity.mask import Mask

WARM_UP = 3
AMPERE = (8, 0)


def spread(values: Sequence[float]) -> dict[str, float]:
    """`median`, quartiles `low` and `high` (linear), and `least`, which other load disturbs least."""
    least, low, median, high = map(float, np.percentile(values, (0, 25, 50, 75)))
    return {"median": median, "low": low, "high": high, "least": least}


def speed_up(dense: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Speed-up over dense: `median`, `low`, `high` of the ratios within rounds, and `fastest`, of the least times."""
    ratios = spread([a / b for a, b in zip(dense, other, strict=True)])
    return {name: ratios[name] for name in ("median", "low", "high")} | {"fastest": min(dense) / min(other)}


def in_turn(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warm_up: int = WARM_UP,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Name -> milliseconds of each of `repeats` calls, after `warm_up` calls of each that do not count.

    Every round calls each function once, so that other load affects all alike; the order is reversed in every other
    round, so that none is always first. On a CUDA device times are measured by its events.
    """
    milliseconds = _on_cuda if device.type == "cuda" else _on_cpu
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(warm_up + repeats):
        for name in list(works) if number % 2 else reversed(list(works)):
            taken = milliseconds(works[name])
            if number >= warm_up:
                times[name].append(taken)
        advance()
    return times


def _on_cpu(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def _on_cuda(work: Callable[[], object]) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop)


def obstacle(device: torch.device, dtype: torch.dtype, mask: Mask | None = None) -> str | None:
    """The reason why 2:4 multiplication is not available; None if it is. mask: None for any 2:4 mask."""
    try:
        if mask is not None:
            check_pattern(mask, 2, 4)
    except InputError as error:
        return f"the mask is not 2:4 ({error})"
    if device.type != "cuda":
        return f"it needs a CUDA device, and this is the {device.type}, where a 2:4 mask costs and saves nothing"
    capability = torch.cuda.get_device_capability(device)
    if capability < AMPERE:
        return f"it needs a CUDA device of capability 8.0 or more, and this one has {'.'.join(map(str, capability))}"
    if dtype not in (torch.float16, torch.bfloat16):
        return "it needs half precision: give --precision 16-true or bf16-true"
    return None


def compressed(weight: Tensor) -> Tensor | None:
    """weight [o, i], half precision on a CUDA device and 2:4 along i, in the format; None for unsupported shapes."""
    if weight.dim() != 2:
        return None
    try:
        return torch.sparse.to_sparse_semi_structured(weight)
    except RuntimeError as error:
        if "dimension" in str(error) or "shape" in str(error):  # sides must be multiples of a number of the data type
            return None
        raise


@torch.no_grad()
def compress_layers(model: Model) -> tuple[int, int]:
    """Convert the prunable weights of a 2:4 model, in place; returns the numbers of converted and of all layers."""
    done, uses = 0, layer_uses(model)
    for modules in map(list, map(dict.values, uses.values())):
        linear = all(isinstance(module, nn.Linear) for module in modules)  # other modules multiply differently
        sparse = compressed(modules[0].weight.detach()) if linear else None
        if sparse is None:
            continue
        done += 1
        parameter = nn.Parameter(sparse, requires_grad=False)
        for module in modules:  # shared weights stay shared
            module.weight = parameter
    return done, len(uses)
