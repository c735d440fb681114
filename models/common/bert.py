"""The text halves of X-VLM and BLIP, built from transformers' BERT layers. Devlin et al., NAACL 2019."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertAttention, BertLayer, BertPredictionHeadTransform

from console.errors import InputError
from models.common.sizes import Stack, check_sizes, of_layer, only


@dataclass(frozen=True)
class TextConfig(Stack):
    """Sizes of a text stack. Layers from `fusion_layer` on have cross-attention."""

    vocab_size: int  # words
    fusion_layer: int  # first layer with cross-attention
    positions: int  # longest text, in tokens
    dropout: float  # in training
    cross_heads: list[int] | int | None = None  # of cross-attentions, one a layer that has it (None: as `heads`)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cross_heads is not None:
            check_sizes("cross_heads", self.cross_heads, self.layers - self.fusion_layer)

    def cross(self, number: int) -> int:
        """Heads of the cross-attention of a layer, from 0."""
        sizes = self.heads if self.cross_heads is None else self.cross_heads
        return of_layer(sizes, number if self.cross_heads is None else number - self.fusion_layer)

    def only(self, kept: Sequence[int], **changes: Any) -> Self:
        """Of a stack with these of its layers."""
        crossing = [number - self.fusion_layer for number in kept if number >= self.fusion_layer]
        cross = None if self.cross_heads is None else only(self.cross_heads, crossing)
        return super().only(kept, fusion_layer=len(kept) - len(crossing), cross_heads=cross, **changes)

    def fused(self) -> TextConfig:
        """The layers with cross-attention as a stack of their own."""
        return self.only(range(self.fusion_layer, self.layers))


def plain_name(key: str, keys: set[str]) -> str | None:
    """Key of an official checkpoint of X-VLM or BLIP -> its name; None for what models never need.

    Position id buffers hold 0, 1, 2, ...; upstream stores the word prediction's bias under a second name.
    """
    if key.endswith(".position_ids"):
        return None
    if key.endswith(".cls.predictions.bias"):
        decoder = key.replace("predictions.bias", "predictions.decoder.bias")
        return None if decoder in keys else decoder
    return key


def bert_config(config: TextConfig, cross_attention: bool, mlp: int) -> BertConfig:
    """transformers' configuration of one layer kind; `bert_layer` sets the heads of each attention."""
    bert = BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_attention_heads=1,
        intermediate_size=mlp,
        hidden_act="gelu",
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        layer_norm_eps=1e-12,
        is_decoder=cross_attention,
        add_cross_attention=cross_attention,
    )
    bert._attn_implementation = "sdpa"
    return bert


def layer_states(layer: nn.Module, x: Tensor, mask: Tensor, image: Tensor, image_mask: Tensor) -> Tensor:
    """A layer with cross-attention: states x [b, t, d] that look at image states [b, p, d] -> [b, t, d].

    One image [1, p, d] serves all texts: its keys and values are computed once, and the tokens of all texts ask them as
    those of one long text. Most of such a layer's work is on image tokens where texts are short.
    """
    if len(image) == len(x):
        return layer(x, mask, image, image_mask)
    own = layer.attention(x, mask)[0]
    looked = layer.crossattention(own.reshape(1, -1, own.shape[-1]), None, image, image_mask)[0]
    return layer.feed_forward_chunk(looked.view_as(own))


class Embeddings(nn.Module):
    """Word + position (+ token type 0) embeddings, LayerNorm, dropout.

    Own code because BLIP has no token types and because transformers' module holds buffers that
    cannot be built without memory (models are built empty, then filled from a file).
    """

    def __init__(self, config: TextConfig, token_types: bool):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.width, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.token_type_embeddings = nn.Embedding(2, config.width) if token_types else None
        self.LayerNorm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: Tensor, first: int = 0) -> Tensor:
        """ids [b, t] int64, from position `first` on -> [b, t, d].

        InputError when a text is longer than the position table.
        """
        t = first + ids.shape[1]
        if t > len(self.position_embeddings.weight):
            raise InputError(
                f"a text of {t} tokens is too long for this model, which has {len(self.position_embeddings.weight)} "
                "positions: set max_tokens in the configuration to that or less"
            )
        x = self.word_embeddings(ids) + self.position_embeddings.weight[first:t]
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(x))


def bert_layer(config: TextConfig, number: int) -> BertLayer:
    """Layer `number` of a stack, from 0, with its own sizes."""
    crosses, sizes = number >= config.fusion_layer, config.layer(number)
    layer = BertLayer(bert_config(config, crosses, sizes.mlp), layer_idx=number)
    set_heads(layer.attention, sizes.heads, sizes.head_width)
    if crosses:
        set_heads(layer.crossattention, config.cross(number), sizes.head_width)
    return layer


def set_heads(attention: BertAttention, heads: int, head_width: int) -> None:
    """Give an attention without weights as many heads of that width."""
    inner, width, inside = attention.self, attention.output.dense.out_features, heads * head_width
    inner.num_attention_heads, inner.attention_head_size, inner.all_head_size = heads, head_width, inside
    inner.scaling = head_width**-0.5
    inner.query, inner.key, inner.value = (nn.Linear(width, inside) for _ in range(3))
    attention.output.dense = nn.Linear(inside, width)


class Encoder(nn.Module):
    """The stack of BERT layers; those from `fusion_layer` on own a cross-attention."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.layer = nn.ModuleList(bert_layer(config, number) for number in range(config.layers))


class MLMHead(nn.Module):
    """BERT's word prediction head; `decoder.weight` is meant to be tied to the word embeddings."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.predictions = nn.Module()
        self.predictions.transform = BertPredictionHeadTransform(bert_config(config, False, mlp=1))
        self.predictions.decoder = nn.Linear(config.width, config.vocab_size)

    def forward(self, states: Tensor) -> Tensor:
        """states [..., d] -> word logits [..., V]."""
        return self.predictions.decoder(self.predictions.transform(states))


def hidden_words_loss(batch: dict[str, Tensor], states: Tensor, head: MLMHead) -> Tensor:
    """Masked language modelling: cross-entropy of masked_ids at masked_pos, both [b, m], from states [b, t, d]."""
    at = batch["masked_pos"][:, :, None].expand(-1, -1, states.shape[-1])
    logits = head(states.gather(1, at))
    return F.cross_entropy(logits.flatten(0, 1).float(), batch["masked_ids"].flatten())
