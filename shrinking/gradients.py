"""First-order criteria: the change of the loss without a unit (Taylor), and how much a layer changes its input.

    taylor(unit) = sum over batches of |sum w dw over what makes it| + |sum w dw over what reads it|
as in DynaBERT (Hou et al., NeurIPS 2020); for a layer, summed over its tensors. MoPE groups neurons in this order.
Block influence: 1 - cosine of a layer's inputs and outputs, mean over real tokens (Men et al., "ShortGPT", 2024).

    python shrink.py measure --model dino-mini --criterion taylor
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.preserve import moving_restored, preserved
from calibration.stream import device_of, to_device
from console.errors import InputError
from data.randomness import seeded
from models.base import Batch, Model
from models.parts import Layers, Units, all_sets, layers, named_tensors
from shrinking.errors import Values
from shrinking.mope import reading

Data = Callable[[], Iterable[Batch]]


def taylor(model: Model, batches: Data, loss: Callable[[Batch], Tensor], seed: int = 42) -> Values:
    """Taylor importance [count] of each set; NaN for units and layers that the loss never reads.

    loss: a scalar of a batch. Every process computes all of it.
    """
    tensors, sets = named_tensors(model), all_sets(model)
    values: Values = {one.name: torch.full((one.count,), torch.nan, dtype=torch.float64) for one in sets}
    with preserved(model, gradients=False):
        moving = {id(tensor) for tensor in model.moving_tensors()}  # momentum copies have no gradients
        trained = [parameter for parameter in model.inner.parameters() if id(parameter) not in moving]
        for parameter in trained:
            parameter.requires_grad_(True)
        for number, batch in enumerate(batches()):
            with seeded(seed, "unit", number, device=device_of(model)), moving_restored(model):
                found = torch.autograd.grad(loss(to_device(batch, device_of(model))), trained, allow_unused=True)
            change = {
                id(p): (p.detach() * g).double().cpu() for p, g in zip(trained, found, strict=True) if g is not None
            }
            for one in sets:
                _add(values[one.name], one, tensors, change)
    return values


def _add(values: Tensor, one: Units | Layers, tensors: dict[str, Tensor], change: dict[int, Tensor]) -> None:
    """Add one batch to the values [count] of a set. change: w dw by id of a tensor, if it has a gradient."""
    if isinstance(one, Layers):
        for number in range(one.count):
            at = tuple(f"{path}.{number}." for path in one.lists)
            own = {id(tensor) for name, tensor in tensors.items() if name.startswith(at)}
            sums = [float(product.sum().abs()) for key, product in change.items() if key in own]
            if sums:
                values[number] = values[number].nan_to_num() + sum(sums)
        return
    read = reading(one, tensors)
    halves: dict[bool, Tensor] = {}
    for at in one.slices:
        if (product := change.get(id(tensors[at.tensor]))) is not None:
            # The sum within a unit is signed: removing it changes all of its weights at once.
            own = at.by_unit(product, one.count).sum(dim=(0, 2))
            halves[at in read] = halves.get(at in read, 0) + own
    if halves:
        values.nan_to_num_().add_(sum(half.abs() for half in halves.values()))


@torch.no_grad()
def influence(model: Model, batches: Data, seed: int = 42) -> Values:
    """Block influence [count] of each list of layers, over calibration's forward pass; heads and neurons have none."""
    rows = layers(model)
    if not rows:
        raise InputError("the model has no removable layers: choose taylor, magnitude or random")
    prunable = list(model.prunable_layers())
    sums = {one.name: torch.zeros(one.count, 2, dtype=torch.float64) for one in rows}
    with preserved(model, gradients=False):
        for number, batch in enumerate(batches()):
            batch = to_device(batch, device_of(model))
            handles = []
            for one in rows:
                for n in range(one.count):
                    at = f"{one.name}.{n}"
                    name = next((name for name in prunable if name.startswith(f"{at}.")), None)
                    real = None if name is None else model.real_tokens(name, batch)
                    hook = _observer(sums[one.name][n], real)
                    handles.append(model.inner.get_submodule(at).register_forward_hook(hook, with_kwargs=True))
            try:
                with seeded(seed, "unit", number, device=device_of(model)):
                    model.observe(batch)
            finally:
                for handle in handles:
                    handle.remove()
    return {name: found[:, 0] / found[:, 1].clamp(min=1) for name, found in sums.items()}


def _observer(sums: Tensor, real: Tensor | None) -> Callable[..., None]:
    def note(layer: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output if isinstance(output, Tensor) else output[0]
        change = 1 - F.cosine_similarity(before.double(), after.double(), dim=-1)
        counts = torch.ones_like(change) if real is None else real.to(change)
        sums[0] += float((change * counts).sum())
        sums[1] += float(counts.sum())

    return note
