"""The inputs of layers as rows of a matrix: tokens for linear layers, patches for convolutions.

With weights as matrices [o, i] (models/layers.py), every layer computes y = W x for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple
from weakref import ReferenceType, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from console.errors import InputError
from models.base import Batch, Model
from models.layers import Product, PrunableLayer, attention_products, layer_uses, width


class Read(NamedTuple):
    """An input that a layer is about to read.

    name: of the weight. block: of its rows, where several read inputs of their own, else 0. x: [..., i], or [b, c, H,
    W] of a convolution. real: which tokens of x are no padding, of the shape of x without its last axis; None: all.
    sequences: how many x has; 0 for an empty input, such as an expert without tokens. image: as real, which tokens are
    of images; None: all are of one kind.
    """

    name: str
    block: int
    layer: PrunableLayer
    x: Tensor
    real: Tensor | None
    sequences: int
    image: Tensor | None = None


Look = Callable[[Read], None]

Choice = Callable[[Callable[[], Batch], Look], AbstractContextManager[Look]]
"""A context for passes. It takes a function that gives the batch, and a `look`; it yields the `look` to use, which
passes on reads whose `real` are the chosen tokens.
"""


@torch.no_grad()
def watch_inputs(
    model: Model,
    batch: Batch,
    look: Look,
    run: Callable[[Batch], object] | None = None,
    choice: Choice | None = None,
) -> None:
    """Forward the batch without losses; `look` is called at each input of every prunable layer. run: another pass.

    choice: as of `watching`.
    """
    with watching(model, lambda: batch, look, choice):
        (run or model.observe)(batch)


@contextmanager
def watching(model: Model, batch: Callable[[], Batch], look: Look, choice: Choice | None = None) -> Iterator[None]:
    """Within this, `look` is called at each input of every prunable layer. batch: that of the pass that runs now.

    choice: of tokens (calibration/token_choice.py); None: all that are no padding.
    A weight that several modules share is observed at each of them, with the tokens of each; only at the first if the
    model sets `first_use_only`. InputError when an input or its padding does not fit.
    """

    def see(
        name: str, use: str, layer: PrunableLayer, x: Tensor, blocks: range = range(1), sequences: int | None = None
    ) -> None:
        real = model.real_tokens(use, batch())
        image = None if model.image_tokens is None else model.image_tokens(use, batch())
        check_input(use, layer, x, real)
        check_input(use, layer, x, image)
        if x.dim() == 1:  # a vector without a batch axis
            x, real, image = x.unsqueeze(0), *(None if mask is None else mask.unsqueeze(0) for mask in (real, image))
        if sequences is None:
            sequences = x.shape[0]  # a layer cannot know its batch axis: by convention it is the first
        for block in blocks:
            counted(Read(name, block, layer, x, real, sequences if x.numel() else 0, image))

    def hook(name: str, use: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def met(layer: nn.Module, inputs: tuple[Any, ...], by_name: dict[str, Any]) -> None:
            tensors = (x for x in (*inputs, *by_name.values()) if isinstance(x, Tensor))
            if (x := next(tensors, None)) is not None:
                see(name, use, layer, x)

        return met

    def multiplied(product: Product, multiply: Callable[[], Tensor]) -> Tensor:
        see(*product[:3], product.x, product.blocks, product.sequences)
        return multiply()

    chosen = nullcontext(look) if choice is None else choice(batch, look)
    with chosen as counted, attention_products(model, multiplied), ExitStack() as hooks:
        for name, uses in layer_uses(model).items():
            for use, layer in [(name, uses[name])] if model.first_use_only else uses.items():
                if isinstance(layer, nn.Module):
                    hooks.enter_context(layer.register_forward_pre_hook(hook(name, use), with_kwargs=True))
        yield


def check_input(name: str, layer: PrunableLayer, x: Tensor, real: Tensor | None) -> None:
    """InputError unless a linear layer can read x [..., i] and `real` says of each of its tokens whether it counts."""
    if isinstance(layer, nn.Conv2d):
        return
    if x.dim() == 0 or x.shape[-1] != width(layer):
        raise InputError(
            f"'{name}' has a weight for {width(layer)} inputs but reads a tensor of shape {tuple(x.shape)}, so it is "
            "no ordinary linear layer: exclude it"
        )
    if real is None:
        return
    given = f"of shape {tuple(real.shape)}" if isinstance(real, Tensor) else f"a {type(real).__name__}"
    if not isinstance(real, Tensor) or real.shape != x.shape[:-1]:
        raise InputError(
            f"the tokens of '{name}' must be a mask of shape {tuple(x.shape[:-1])}, since the layer reads "
            f"{tuple(x.shape)}, but they are {given}: fix `tokens`, or let it return None if all of them count"
        )


class SharedInput:
    """Detects that a linear layer reads the same input as the one before it, so that one computation serves both.

    The same tensor is not enough: `x += a(x)` changes its values, which the tensor's version shows (a change through
    `x.data` is invisible to torch). Padding and kinds of tokens must be equal, too; a model may build an equal mask for
    each of q, k and v.
    """

    def __init__(self) -> None:
        # The tensor is not kept alive: its memory is wanted for what comes next.
        self._last: tuple[ReferenceType[Tensor], int, Tensor | None, Tensor | None] | None = None

    def again(self, read: Read) -> bool:
        """Whether it is the same input; `read` becomes the previous one."""
        before = self._last
        if isinstance(read.layer, nn.Conv2d) or read.x.is_inference():  # inference tensors have no version
            self._last = None
            return False
        self._last = (ref(read.x), read.x._version, read.real, read.image)
        if before is None or before[0]() is not read.x or before[1] != read.x._version:
            return False
        return _same(before[2], read.real) and _same(before[3], read.image)

    def forget(self) -> None:
        """Forget the tensor."""
        self._last = None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one is other:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)


CHUNK = 1 << 20
"""Numbers that are squared at a time: fresh memory for all of a large input costs several times the arithmetic."""


def squares(read: Read) -> Tensor:
    """Sum over rows of x_i^2 [i], float64, of tokens that are real."""
    if isinstance(read.layer, nn.Conv2d):
        return _patches(read.layer, read.x.float().square()).sum(dim=(0, 2)).double()
    real = None if read.real is None else read.real.flatten().float().unsqueeze(-1)
    total = torch.zeros(read.x.shape[-1], dtype=torch.float64, device=read.x.device)
    for part, squared in _squared(read.x):
        total += (squared if real is None else squared * real[part]).sum(dim=0)
    return total


def _squared(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows of x [..., i] at a time, and their squares in float32."""
    x = x.flatten(0, -2)
    step = max(1, CHUNK // max(1, x.shape[1]))
    for first in range(0, len(x), step):
        part = slice(first, first + step)
        yield part, x[part].float().square()


def squares_by_kind(read: Read) -> Tensor | None:
    """Sums of x_i^2 and number of tokens [2, i + 1], of real text tokens and of image tokens; None of one kind only."""
    if read.image is None:
        return None
    image = read.image.bool()
    kinds = torch.stack([~image, image]).float()
    if read.real is not None:
        kinds = kinds * read.real.float()
    kinds = kinds.flatten(1)
    sums = torch.zeros(2, read.x.shape[-1], dtype=torch.float64, device=read.x.device)
    for part, squared in _squared(read.x):
        sums += kinds[:, part] @ squared
    return torch.cat([sums, kinds.sum(dim=1, keepdim=True)], dim=1)


def rows(read: Read) -> Tensor:
    """All rows [r, i] float32; those of tokens that are not real are zero."""
    if isinstance(read.layer, nn.Conv2d):
        return _patches(read.layer, read.x.float()).transpose(1, 2).flatten(0, 1)
    tokens = read.x.float() if read.real is None else read.x.float() * read.real.to(torch.float32).unsqueeze(-1)
    return tokens.flatten(0, -2)


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """x [b, c, H, W] -> [b, i, positions]."""
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        return F.unfold(x, layer.kernel_size, layer.dilation, 0, layer.stride)
    return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
