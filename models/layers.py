"""Prunable weights: each is a matrix [o, i] that multiplies inputs, however its parameter stores it.

A prunable layer is anything with a `weight`: nn.Linear, nn.Conv2d without groups (i is channels x kernel), GPT-2's
Conv1D of transformers (kept as [i, o]), and the matrices of nn.MultiheadAttention, which are parameters without a
module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from models.base import Model

READS = {"in_proj_weight": ("query", "key", "value"), "q_proj_weight": (), "k_proj_weight": (), "v_proj_weight": ()}
"""Parameters of nn.MultiheadAttention -> what each block of their rows reads, where there are several blocks."""


TABLES = ("embed", "pos", "token", "bias", "gamma", "scale")
"""Parts of the names of bare parameters that are no matrices (`is_table`)."""


class PrunableLayer(Protocol):
    """A module with a weight, or an `AttentionWeight`."""

    @property
    def weight(self) -> nn.Parameter:
        """The parameter."""


class AttentionWeight:
    """A matrix of nn.MultiheadAttention, whose parameter belongs to no module of its own."""

    def __init__(self, attention: nn.MultiheadAttention, leaf: str):
        """leaf: one of READS."""
        self.attention, self.leaf = attention, leaf

    @property
    def weight(self) -> nn.Parameter:
        """The parameter, also after it was replaced."""
        return getattr(self.attention, self.leaf)

    @property
    def bias(self) -> Tensor | None:
        """The bias of its products: of separate q, k and v matrices, their part of `in_proj_bias`."""
        whole = self.attention.in_proj_bias
        if whole is None or self.leaf == "in_proj_weight":
            return whole
        return whole.chunk(3)["qkv".index(self.leaf[0])]


class Form(NamedTuple):
    """How a matrix [o, i] is kept: the shape of its parameter, and whether that is the matrix transposed.

    Works on tensors and arrays alike.
    """

    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(o, i)."""
        if self.transposed:
            return self.shape[1], self.shape[0]
        size = 1
        for side in self.shape[1:]:
            size *= side
        return self.shape[0], size

    def matrix(self, kept: Any) -> Any:
        """A tensor of the parameter's shape as a matrix [o, i]."""
        return kept.T if self.transposed else kept.reshape(self.matrix_shape)

    def parameter(self, matrix: Any) -> Any:
        """A matrix [o, i] in the parameter's shape."""
        return matrix.T if self.transposed else matrix.reshape(self.shape)


def is_conv1d(layer: object) -> bool:
    """Whether it is transformers' Conv1D; false if transformers was never imported."""
    module = sys.modules.get("transformers.pytorch_utils")
    return module is not None and isinstance(layer, module.Conv1D)


def form_of(layer: PrunableLayer) -> Form:
    """How the layer keeps its matrix."""
    return Form(tuple(layer.weight.shape), is_conv1d(layer))


def matrix(layer: PrunableLayer) -> Tensor:
    """The weight as [o, i], detached; shares memory with the parameter where strides allow."""
    return form_of(layer).matrix(layer.weight.detach())


def width(layer: PrunableLayer) -> int:
    """i, the number of inputs of one output."""
    return form_of(layer).matrix_shape[1]


def blocks_of(layer: PrunableLayer) -> int:
    """Number of equal blocks of rows that may read different inputs."""
    return max(1, len(READS[layer.leaf])) if isinstance(layer, AttentionWeight) else 1


def multiplies_as(module: nn.Module, leaf: str) -> tuple[Any, ...] | None:
    """How a module multiplies by its parameter; None if unknown.

    A shared weight can be scored by its inputs only if all modules multiply by it in the same way: other inputs have
    another width, or are not observed.
    """
    if isinstance(module, nn.MultiheadAttention) and leaf in READS:
        return ("attention", leaf)
    if leaf != "weight" or (not isinstance(module, nn.Linear | nn.Conv2d) and not is_conv1d(module)):
        return None
    return ("transposed",) if is_conv1d(module) else ("convolution",) if isinstance(module, nn.Conv2d) else ("linear",)


def is_table(module: nn.Module, leaf: str, parameter: Tensor) -> bool:
    """Whether a parameter with two or more axes is a lookup table, a summand or a scale rather than a factor.

    Layers and norms are recognised by type, bare parameters by name or by a leading batch axis of one (positions).
    """
    if multiplies_as(module, leaf) is not None:
        return False
    if "norm" in type(module).__name__.lower() or leaf == "weight_g":
        return True
    return leaf != "weight" and (parameter.shape[0] == 1 or any(word in leaf.lower() for word in TABLES))


def layer_uses(model: Model) -> dict[str, dict[str, PrunableLayer]]:
    """Name of a prunable weight -> all modules that multiply by it, by the name of the weight in each.

    Several modules may share a weight.
    """
    layers = model.prunable_layers()
    names = {id(layer.weight): name for name, layer in layers.items()}
    uses: dict[str, dict[str, PrunableLayer]] = {name: {} for name in layers}
    for path, module in model.inner.named_modules():
        for leaf, parameter in module._parameters.items():
            if (name := names.get(id(parameter))) is not None:
                use = module if leaf == "weight" else AttentionWeight(module, leaf)
                uses[name][f"{path}.{leaf}" if path else leaf] = use
    return uses


class Product(NamedTuple):
    """A multiplication that nn.MultiheadAttention is about to do by a prunable matrix.

    name: of the weight. use: the name for `Model.real_tokens`; of in_proj_weight with `.query`, `.key` or `.value` at
    the end, where these inputs differ. blocks: the blocks of rows that read x [..., i], which has the axes of the
    attention's own inputs. sequences: number of sequences in x.
    """

    name: str
    use: str
    layer: PrunableLayer
    blocks: range
    x: Tensor
    sequences: int


@contextmanager
def attention_products(model: Model, seen: Callable[[Product, Callable[[], Tensor]], Tensor]) -> Iterator[None]:
    """Inside, `seen(product, multiply)` is called for each Product, and returns what `multiply()` returns.

    nn.MultiheadAttention multiplies by its matrices in functions, which no hook of a module sees. They all go through
    `linear` of torch.nn.functional, which is replaced inside, and only if such a matrix is prunable.
    """
    matrices = _attention_weights(model)
    if not matrices:
        yield
        return
    linear, running, handles = F.linear, [], []

    def begin(attention: nn.MultiheadAttention, inputs: tuple[Any, ...], by_name: dict[str, Any]) -> None:
        tensors = (x for x in (*inputs, by_name.get("query"), *by_name.values()) if isinstance(x, Tensor))
        running.append((attention, next(tensors, None)))

    def end(*_: Any) -> None:
        running.pop()

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        attention, query = running[-1] if running else (None, None)
        own = matrices.get(id(attention), ())
        found = next((matrix for matrix in own if _is_part(weight, matrix[2].weight)), None)
        if found is None or query is None:
            return linear(x, weight, bias)
        name, use, layer = found
        whole, count = layer.weight, blocks_of(layer)
        rows = len(whole) // count
        first = (weight.storage_offset() - whole.storage_offset()) // whole.stride(0) // rows
        blocks = range(first, first + len(weight) // rows)
        if len(blocks) < count:
            use = f"{use}.{READS[layer.leaf][first]}"
        product = Product(name, use, layer, blocks, *_own_axes(x, attention, query))
        return seen(product, lambda: linear(x, weight, bias))

    for attention in {id(a): a for a in model.modules() if isinstance(a, nn.MultiheadAttention)}.values():
        handles.append(attention.register_forward_pre_hook(begin, with_kwargs=True))
        handles.append(attention.register_forward_hook(end, always_call=True))
    F.linear = watched
    try:
        yield
    finally:
        F.linear = linear
        for handle in handles:
            handle.remove()


def _own_axes(x: Tensor, attention: nn.MultiheadAttention, query: Tensor) -> tuple[Tensor, int]:
    """x [t, b, i] or [t b, i] with the axes that the attention's inputs have, and b.

    Those are [b, t, i], [t, b, i], or [t, i] of a single sequence.
    """
    if query.dim() == 2:
        return x.reshape(-1, x.shape[-1]), 1
    batch = query.shape[0 if attention.batch_first else 1]
    x = x.reshape(-1, batch, x.shape[-1])
    return x.transpose(0, 1) if attention.batch_first else x, batch


def _attention_weights(model: Model) -> dict[int, list[tuple[str, str, PrunableLayer]]]:
    """id of an attention -> its matrices: the name of each weight, its name in this attention, the layer."""
    found: dict[int, list[tuple[str, str, PrunableLayer]]] = {}
    projections = {id(a.out_proj): a for a in model.modules() if isinstance(a, nn.MultiheadAttention)}
    for name, uses in layer_uses(model).items():
        for use, layer in uses.items():
            attention = layer.attention if isinstance(layer, AttentionWeight) else projections.get(id(layer))
            if attention is not None:
                found.setdefault(id(attention), []).append((name, use, layer))
    return found


def _is_part(weight: Tensor, whole: Tensor) -> bool:
    """Whether a weight is a matrix, or some of its rows: torch cuts in_proj_weight up where inputs differ."""
    if weight is whole:
        return True
    ahead = weight.storage_offset() - whole.storage_offset()
    same = weight.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    return same and 0 <= ahead < whole.numel() and weight.shape[1:] == whole.shape[1:]


def weights_in_matrices(model: Model) -> tuple[int, int]:
    """The number of prunable weights, and the number of weights in all matrices that multiply inputs.

    These are all layers, convolutions and heads; not tables (embeddings, also if tied to a head; positions) or tensors
    for losses only (momentum copies).
    """
    prunable = {id(layer.weight): layer.weight.numel() for layer in model.prunable_layers().values()}
    left_out = {id(tensor) for tensor in model.training_only()}
    left_out |= {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)}
    others = {
        id(p): p.numel()
        for part in model.modules()
        for leaf, p in part._parameters.items()
        if p is not None and p.dim() > 1 and id(p) not in left_out and not is_table(part, leaf, p)
    }
    return sum(prunable.values()), sum((others | prunable).values())
