"""What a layer reads, as rows of a matrix: tokens for linear layers, patches for convolutions.

With weights viewed as matrices [o, i] (a convolution's i is channels x kernel), every layer is y = W x for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from console.errors import InputError
from models.base import Batch, PrunableModel

Look = Callable[[str, nn.Module, Tensor, Tensor | None], None]


@torch.no_grad()
def watch_inputs(model: PrunableModel, layers: Mapping[str, nn.Module], batch: Batch, look: Look) -> None:
    """Forward the batch without losses; `look(name, layer, x, real)` is called at the input x of every layer met,
    the same object for layers that read the same input.

    real: [b, t], which tokens of x are no padding; None: all. InputError where it does not fit x.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def see(layer: nn.Module, inputs: tuple[Tensor, ...], by_name: dict[str, Tensor]) -> None:
            x = inputs[0] if inputs else by_name["input"]
            real = model.real_tokens(name, batch)
            check_tokens(name, layer, x, real)
            look(name, layer, x, real)

        return see

    hooks = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        model.observe(batch)
    finally:
        for handle in hooks:
            handle.remove()


def check_tokens(name: str, layer: nn.Module, x: Tensor, real: Tensor | None) -> None:
    """InputError unless `real` says of each token of a linear layer's input x [..., i] whether it counts."""
    if real is None or not isinstance(layer, nn.Linear):
        return
    given = f"of shape {tuple(real.shape)}" if isinstance(real, Tensor) else f"a {type(real).__name__}"
    if not isinstance(real, Tensor) or real.shape != x.shape[:-1]:
        raise InputError(
            f"the tokens of '{name}' must be a mask of shape {tuple(x.shape[:-1])}, since the layer reads "
            f"{tuple(x.shape)}, but they are {given}: mend `tokens`, or let it give None where all of them count"
        )


def width(layer: nn.Module) -> int:
    """i, the number of inputs of one output."""
    return layer.weight[0].numel()


def squares(layer: nn.Module, x: Tensor, real: Tensor | None) -> Tensor:
    """Sum over rows of x_i^2 [i]. real: [b, t], which tokens of a linear layer's input [b, t, i] count."""
    squared = x.float().square()
    if isinstance(layer, nn.Conv2d):
        return _patches(layer, squared).sum(dim=(0, 2))
    if real is not None:
        squared = squared * real.to(squared.dtype).unsqueeze(-1)
    return squared.flatten(0, -2).sum(dim=0)


def rows(layer: nn.Module, x: Tensor, real: Tensor | None) -> Tensor:
    """All rows [r, i] float32; those of tokens that are not real are zero."""
    if isinstance(layer, nn.Conv2d):
        return _patches(layer, x.float()).transpose(1, 2).flatten(0, 1)
    tokens = x.float() if real is None else x.float() * real.to(torch.float32).unsqueeze(-1)
    return tokens.flatten(0, -2)


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """x [b, c, H, W] -> [b, i, positions]."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        return F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
