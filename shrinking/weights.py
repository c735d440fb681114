"""Criteria without data, magnitude and random: baselines of the measured ones.

python shrink.py measure --model dino-mini --criterion magnitude
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.base import Model
from models.parts import Layers, Units, all_sets, named_tensors
from shrinking.errors import Values


def magnitudes(model: Model, seed: int) -> Values:
    """The Euclidean norm of all matrix weights that are removed with a unit or a layer; the seed is not used."""
    tensors = named_tensors(model)
    found: Values = {}
    for one in all_sets(model):
        if isinstance(one, Layers):
            found[one.name] = torch.stack([_norm_inside(tensors, f"{one.name}.{n}.") for n in range(one.count)])
        else:
            found[one.name] = _norms(one, tensors)
    return found


def _norms(one: Units, tensors: dict[str, Tensor]) -> Tensor:
    """[count]."""
    squares = torch.zeros(one.count, dtype=torch.float64)
    for at in one.slices:
        tensor = tensors[at.tensor].detach()
        if tensor.dim() > 1:  # biases and norm weights have another scale
            squares += at.by_unit(tensor, one.count).double().square().sum(dim=(0, 2)).cpu()
    return squares.sqrt()


def _norm_inside(tensors: dict[str, Tensor], prefix: str) -> Tensor:
    own = (tensor.detach() for name, tensor in tensors.items() if name.startswith(prefix) and tensor.dim() > 1)
    return torch.stack([tensor.double().square().sum().cpu() for tensor in own]).sum().sqrt()


def random_values(model: Model, seed: int) -> Values:
    """Uniform numbers, drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    return {one.name: torch.rand(one.count, generator=generator, dtype=torch.float64) for one in all_sets(model)}
