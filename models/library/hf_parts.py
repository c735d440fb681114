"""Removable parts of transformers' models: heads of self- and cross-attentions, hidden neurons, layers.

Readers are found by the names of classes, since importing their many modules takes seconds. Layers of BERT's kind
keep an attention's output matrix, and the second one of their MLP, in modules of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import nn

from console.errors import InputError
from models.library.finding import Skipped
from models.library.parts import Reader, read, rows_of, units_of
from models.parts import Part, Units


def hf_parts(module: nn.Module) -> Iterator[Part]:
    """The parts of all blocks of a module of transformers, or of one that is made of its blocks."""
    yield from read(module, _reader_of)
    yield from rows_of(module, _is_layer, "config.num_hidden_layers", ("layer_idx", "layer_num"))


def _reader_of(part: nn.Module) -> Reader | None:
    return READERS.get(type(part).__name__) if type(part).__module__.startswith("transformers.") else None


def _is_layer(part: nn.Module) -> bool:
    return type(part).__name__ in LAYERS and type(part).__module__.startswith("transformers.")


def _heads(
    root: nn.Module, at: str, feeds: Iterable[str], reads: str, width: int, counts: Mapping[str, int]
) -> Units | Skipped:
    """Heads of the attention at a path, by the names of its layers and of the attributes that count them."""
    own = {f"{at}{name}": each for name, each in counts.items()}
    feeds = [f"{at}{name}" for name in feeds]
    return units_of(root, at[:-1], "heads", feeds=feeds, reads=f"{at}{reads}", block=width, attributes=own)


def _attention(at: str, root: nn.Module) -> Iterator[Part]:
    attention = root.get_submodule(at[:-1])
    out = "o_proj" if hasattr(attention, "o_proj") else "out_proj"
    heads = "num_heads" if hasattr(attention, "num_heads") else "num_attention_heads"
    yield _heads(root, at, ("q_proj", "k_proj", "v_proj"), out, attention.head_dim, {heads: 1})


def _fused(at: str, root: nn.Module) -> Iterator[Part]:
    layer = f"{at}projection"
    yield Skipped(
        f"{layer}.weight",
        "its attention derives the width of a head from the width of the states and the number of heads",
        root.get_submodule(layer).weight.numel(),
    )


def _bert_attention(at: str, root: nn.Module, inner: str = "self") -> Iterator[Part]:
    width = root.get_submodule(f"{at}{inner}").attention_head_size
    feeds = [f"{inner}.{name}" for name in ("query", "key", "value")]
    counts = {f"{inner}.num_attention_heads": 1, f"{inner}.all_head_size": width}
    yield _heads(root, at, feeds, "output.dense", width, counts)


def _distilbert_attention(at: str, root: nn.Module) -> Iterator[Part]:
    width = root.get_submodule(at[:-1]).attention_head_size
    yield _heads(root, at, ("q_lin", "k_lin", "v_lin"), "out_lin", width, {"n_heads": 1})


def _bert_layer(at: str, root: nn.Module) -> Iterator[Part]:
    name = f"{at}intermediate"
    yield units_of(root, name, "neurons", feeds=[f"{name}.dense"], reads=f"{at}output.dense")


def _mlp_of(*feeds: str, reads: str) -> Reader:
    """The reader of an MLP by the names of its layers."""

    def reader(at: str, root: nn.Module) -> Iterator[Part]:
        yield units_of(root, at[:-1], "neurons", feeds=[f"{at}{name}" for name in feeds], reads=f"{at}{reads}")

    return reader


_mlp = _mlp_of("fc1", reads="fc2")
_gated_mlp = _mlp_of("gate_proj", "up_proj", reads="down_proj")


def fit_config(module: nn.Module) -> None:
    """Set each tower's config to the sizes of its layers, so that the stock class builds them.

    InputError where it cannot: the layers of a tower differ, or the class derives the width of a head from its number.
    """
    towers: dict[int, tuple[Any, list[tuple[str, Units]]]] = {}
    for part in hf_parts(module):
        if isinstance(part, Units):
            inside = next(m for m in _from_inside(module, part.name) if hasattr(m, "config"))
            towers.setdefault(id(inside.config), (inside.config, []))[1].append((type(inside).__name__, part))
    for config, found in towers.values():
        for kind, key in (("heads", "num_attention_heads"), ("neurons", "intermediate_size")):
            counts = {part.count for _, part in found if part.kind == kind}
            if not counts or counts == {getattr(config, key, None)}:
                continue
            names = sorted({name for name, part in found if part.kind == kind})
            if len(counts) > 1:
                raise InputError(
                    f"the layers of a tower have {', '.join(map(str, sorted(counts)))} {kind}, and a stock "
                    f"{names[0]} has one number for all: plan with --scope layer"
                )
            if kind == "heads" and not set(names) <= HEAD_WIDTH_IS_GIVEN:
                raise InputError(
                    f"a stock {names[0]} has no place for fewer heads of the same width: plan with --keep_heads 1"
                )
            if not hasattr(config, key):
                raise InputError(f"the config of a stock {names[0]} has no {key}: plan with --keep_ffn 1")
            if kind == "heads":
                config.head_dim = next(part.block for _, part in found if part.kind == kind)
            setattr(config, key, counts.pop())


def _from_inside(module: nn.Module, path: str) -> Iterator[nn.Module]:
    """The module at a path, and those around it."""
    while path:
        yield module.get_submodule(path)
        path = path.rpartition(".")[0]
    yield module


HEAD_WIDTH_IS_GIVEN = {
    "ViTAttention",
    "DeiTAttention",
    "Dinov2Attention",
    "Dinov2WithRegistersAttention",
}
"""Classes that read the width of a head from the config, if it has one."""

READERS: dict[str, Reader] = {
    "CLIPAttention": _attention,
    "SiglipAttention": _attention,
    "Siglip2Attention": _attention,
    "DINOv3ViTAttention": _attention,
    "ViTAttention": _attention,
    "DeiTAttention": _attention,
    "Dinov2Attention": _attention,
    "Dinov2WithRegistersAttention": _attention,
    "BlipAttention": _fused,
    "BertAttention": _bert_attention,
    "BlipTextAttention": _bert_attention,
    "RobertaAttention": _bert_attention,
    "MobileViTAttention": partial(_bert_attention, inner="attention"),
    "DistilBertSelfAttention": _distilbert_attention,
    "BertLayer": _bert_layer,
    "RobertaLayer": _bert_layer,
    "MobileViTTransformerLayer": _bert_layer,
    "FFN": _mlp_of("lin1", reads="lin2"),
    "BlipTextLayer": _bert_layer,
    "CLIPMLP": _mlp,
    "SiglipMLP": _mlp,
    "Siglip2MLP": _mlp,
    "DINOv3ViTMLP": _mlp_of("up_proj", reads="down_proj"),
    "DINOv3ViTGatedMLP": _gated_mlp,
    "ViTMLP": _mlp,
    "DeiTMLP": _mlp,
    "Dinov2MLP": _mlp,
    "Dinov2WithRegistersMLP": _mlp,
    "BlipMLP": _mlp,
    "Dinov2SwiGLUFFN": _gated_mlp,
    "Dinov2WithRegistersSwiGLUFFN": _gated_mlp,
}
"""Name of a block's class -> its reader. A new one is a line here and, where it is made otherwise, a function."""

LAYERS = (
    "CLIPEncoderLayer",
    "SiglipEncoderLayer",
    "Siglip2EncoderLayer",
    "DINOv3ViTLayer",
    "ViTLayer",
    "DeiTLayer",
    "Dinov2Layer",
    "Dinov2WithRegistersLayer",
    "BertLayer",
    "RobertaLayer",
    "TransformerBlock",
    "MobileViTTransformerLayer",
    "BlipEncoderLayer",
    "BlipTextLayer",
)
"""Names of the classes of layers that follow one another in a list, each from states to states."""
