"""Distances between samples in the output space of each layer, within a memory limit.

A sample's point is a layer's output at all tokens, with padding set to zero: otherwise it would depend on the longest
text of its batch. Squared distances add up over tokens, so that a layer too large for the memory is processed in slices
of tokens, each in its own forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from calibration.stream import to_device
from console.errors import InputError
from models.base import Batch, Model
from models.layers import AttentionWeight, Product, attention_products, layer_uses

NOISE = 1e-5
"""Squared distances below this share of the points' squared norms are rounding errors: the samples are equal."""


@dataclass(frozen=True)
class Piece:
    """Tokens first <= t < last of a layer's output (None: to the end). numbers: float32 values of a sample there."""

    name: str
    first: int
    last: int | None
    numbers: int


@dataclass(frozen=True)
class Shape:
    """Shape of a layer's output for one sample. text: whether the number of tokens is that of the longest text."""

    tokens: int
    width: int
    text: bool


Pass = Callable[[Model, Batch], object]
"""The forward pass of a batch."""


def output_shapes(model: Model, batch: Batch, run: Pass, longest: int | None) -> dict[str, Shape]:
    """Parameter -> shape of its layer's output. longest: tokens of the longest text (None: as in this batch)."""
    found: dict[str, Shape] = {}

    def look(name: str, out: Tensor, padded: bool) -> None:
        tokens = out.shape[1]
        found[name] = Shape(max(tokens, longest or 0) if padded else tokens, out.shape[2], padded)

    watch_outputs(model, batch, run, None, look)
    return found


def plan_passes(shapes: Mapping[str, Shape], samples: int, memory: float) -> list[list[Piece]]:
    """Which outputs each forward pass over the samples keeps, within `memory` bytes.

    InputError when one token of a layer needs more than the memory.
    """
    memory -= 32 * samples**2  # distances, while they are computed
    passes: list[list[Piece]] = [[]]
    left = memory
    for name, shape in shapes.items():
        token = 4 * samples * shape.width
        most = int(memory // token)
        if most < 1:
            raise InputError(
                f"--memory does not hold one token of '{name}' for {samples} samples, {token / 1e9:.3g} GB, next to "
                f"their distances, {32e-9 * samples**2:.3g} GB: give more with --memory, or fewer samples"
            )
        step = shape.tokens if most >= shape.tokens else most
        for first in range(0, shape.tokens, step):
            last = min(first + step, shape.tokens)
            size = token * (last - first)
            if size > left and passes[-1]:
                passes.append([])
                left = memory
            end = None if last == shape.tokens else last
            passes[-1].append(Piece(name, first, end, shape.width * (last - first)))
            left -= size
    return passes


@torch.no_grad()
def squared_distances(
    model: Model,
    batches: Callable[[], Iterator[Batch]],
    samples: int,
    passes: Sequence[Sequence[Piece]],
    run: Pass,
    advance: Callable[[int], None] = lambda steps: None,
) -> Iterator[tuple[str, Tensor]]:
    """For each layer, as soon as its last piece was seen: its name, and squared distances [n, n], float64, CPU.

    batches(): the same batches of `samples` in all at each call, on the model's device or not. Distances of repeated
    samples are zero. InputError at a text longer than `passes` were planned for.
    """
    device = next(model.parameters()).device
    open_layers: dict[str, tuple[Tensor, Tensor]] = {}  # distances and squares so far
    for pieces in passes:
        # Filled in place: concatenation at the end would need the memory twice. Short texts keep zeros at their end.
        kept = {piece.name: torch.zeros(samples, piece.numbers, device=device) for piece in pieces}
        cuts = {piece.name: slice(piece.first, piece.last) for piece in pieces}
        done = dict.fromkeys(kept, 0)

        def look(name: str, out: Tensor, padded: bool, kept: Any = kept, cuts: Any = cuts, done: Any = done) -> None:
            rows = kept[name][done[name] : done[name] + len(out)]
            rows, part = rows.unflatten(1, (-1, out.shape[-1])), out[:, cuts[name]]
            if part.shape[1] > rows.shape[1]:
                raise InputError(
                    f"a text has {out.shape[1]} tokens, more than the longest planned for: raise max_tokens"
                )
            rows[:, : part.shape[1]] = part
            done[name] += len(out)

        for batch in batches():
            watch_outputs(model, to_device(batch, device), run, set(cuts), look)
            advance(1)
        for piece in pieces:
            distances, squares = _add(kept.pop(piece.name))
            if piece.name in open_layers:
                before = open_layers.pop(piece.name)
                distances, squares = distances + before[0], squares + before[1]
            if piece.last is not None:
                open_layers[piece.name] = distances, squares
                continue
            together = squares[:, None] + squares[None, :]
            distances[distances <= NOISE * together] = 0
            yield piece.name, distances.fill_diagonal_(0)


def _add(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances [n, n] and squares [n], about the mean, of outputs [n, numbers], which are overwritten."""
    rows -= rows.mean(dim=0)  # centring leaves distances unchanged and reduces rounding errors
    tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    try:
        products = (rows @ rows.t()).double()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    squares = products.diagonal()
    distances = (squares[:, None] + squares[None, :]).sub_(products, alpha=2).clamp_min_(0)
    return distances.cpu(), squares.cpu()


def watch_outputs(
    model: Model, batch: Batch, run: Pass, wanted: set[str] | None, look: Callable[[str, Tensor, bool], None]
) -> None:
    """Put a batch through the model; `look(name, output, padded)` at the first output of each wanted layer (None: all).

    output: [b, t, d], zero where a token is padding; padded: whether the layer reads padded texts. Of outputs with more
    axes, those between the first and the last become t; of a convolution's [b, d, h, w], h and w do.
    InputError where the first axis is not the samples'.
    """
    seen: set[str] = set()
    samples = len(next(iter(batch.values())))

    def met(name: str, use: str, out: Tensor) -> None:
        if name in seen or (wanted is not None and name not in wanted):
            return
        seen.add(name)
        if out.dim() == 4 and isinstance(layers[name], nn.Conv2d):
            out = out.flatten(2).transpose(1, 2)
        if out.shape[0] % samples:
            raise InputError(
                f"layer '{name}' returns {tuple(out.shape)} for {samples} samples: its dimension cannot be measured, "
                "since the first axis is not the samples'"
            )
        out = out.reshape(samples, -1, out.shape[-1])
        real = model.real_tokens(use, batch)
        padded = real is not None and real.shape == out.shape[:2]
        if padded:
            assert real is not None
            out = out * real[..., None].to(out.dtype)
        look(name, out, padded)

    layers = model.prunable_layers()
    with _outputs(model, met):
        run(model, batch)


@contextmanager
def _outputs(model: Model, met: Callable[[str, str, Tensor], None]) -> Iterator[None]:

    def hook(name: str, use: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: met(name, use, output)

    def multiplied(product: Product, multiply: Callable[[], Tensor]) -> Tensor:
        out = multiply()
        # Within the attention the tokens come first. Of several inputs the first counts, the queries.
        met(product.name, product.use, out.reshape(-1, product.sequences, out.shape[-1]).transpose(0, 1))
        return out

    with attention_products(model, multiplied), ExitStack() as hooks:
        for name, uses in layer_uses(model).items():
            for use, layer in uses.items():
                if not isinstance(layer, AttentionWeight):
                    hooks.enter_context(layer.register_forward_hook(hook(name, use)))
        yield
