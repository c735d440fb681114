"""Where the tokens of a text may look: additive 4-D masks of padding, of later tokens, and of image tokens.

They are always given, since a BERT layer with cross-attention counts as a decoder in transformers and, without a mask,
is silently causal under sdpa. Nothing here imports transformers, which takes seconds.
"""

from __future__ import annotations

import torch
from torch import Tensor

MASKED = -10000.0


def self_attention_mask(atts: Tensor, dtype: torch.dtype) -> Tensor:
    """atts [b, t], 1 real, 0 padding -> additive key mask [b, 1, 1, t]."""
    return (1 - atts[:, None, None, :].to(dtype)) * MASKED


def causal_mask(atts: Tensor, dtype: torch.dtype) -> Tensor:
    """atts [b, t] -> additive mask [b, 1, t, t]: each token sees itself and the real tokens before it."""
    t = atts.shape[1]
    before = torch.ones(t, t, dtype=dtype, device=atts.device).tril()
    return (1 - before * atts[:, None, None, :].to(dtype)) * MASKED


def cross_attention_mask(atts: Tensor, dtype: torch.dtype) -> Tensor:
    """atts [b, p] over image tokens -> additive key mask [b, 1, 1, p], the dtype's minimum where not seen."""
    return (1 - atts[:, None, None, :].to(dtype)) * torch.finfo(dtype).min


def without_padding(ids: Tensor, atts: Tensor) -> tuple[Tensor, Tensor]:
    """ids or states, and atts, [b, t, ...] without the columns at the end in which every text is padding.

    They cost time for nothing.
    """
    longest = int(atts.any(dim=0).nonzero().max()) + 1
    return ids[:, :longest], atts[:, :longest]
