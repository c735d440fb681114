"""The causal text decoder of captioning and VQA: its logits, its losses, and search for the likeliest text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.common.attention_masks import causal_mask, cross_attention_mask

if TYPE_CHECKING:
    from transformers.cache_utils import EncoderDecoderCache

IGNORED = -100  # label of positions that count in no loss


def decoder_logits(
    decoder: nn.Module,
    ids: Tensor,
    atts: Tensor,
    states: Tensor,
    states_atts: Tensor,
    past: EncoderDecoderCache | None = None,
) -> Tensor:
    """Word logits [b, t, V] of `decoder` (`bert` and `cls`) that reads ids [b, t] and looks at states [b, p, d].

    Layers with cross-attention look at the states (atts [b, p]); every layer sees the tokens before only. past: the
    key-value cache. With it, ids are the new tokens only, and atts [b, all] those of all tokens.
    """
    first = 0 if past is None else past.get_seq_length()
    x = decoder.bert.embeddings(ids, first)
    mask = causal_mask(atts, x.dtype)[:, :, first:]
    seen = cross_attention_mask(states_atts, x.dtype)
    for layer in decoder.bert.encoder.layer:
        x = layer(x, mask, states, seen, past)
    return decoder.cls(x)


class NextWords:
    """Logits of the next word of growing texts, each token read once. See `models.common.beam_search.NextWord`."""

    def __init__(self, logits: Callable[[Tensor, Tensor, EncoderDecoderCache], Tensor]):
        """logits: new ids [n, t], atts [n, all] of all tokens, key-value cache -> word logits [n, t, V]."""
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache  # here: all models import this module

        self._logits = logits
        self._past = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def __call__(self, ids: Tensor, origin: Tensor | None) -> Tensor:
        """ids [n, t], origin [n] -> [n, V]. Rows continue rows of the same sample, on the same states."""
        if origin is not None:
            self._past.self_attention_cache.reorder_cache(origin)
        new = ids[:, self._past.get_seq_length() :]
        return self._logits(new, torch.ones_like(ids), self._past)[:, -1]


def caption_labels(ids: Tensor, atts: Tensor, prompt: int) -> Tensor:
    """ids [b, t] as labels: padding and the first `prompt` positions ignored."""
    labels = ids.masked_fill(atts == 0, IGNORED)
    labels[:, :prompt] = IGNORED
    return labels


def library_smoothing(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of each token [n] (logits [n, V], labels [n]): mass `smoothing` is spread over all V words."""
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=smoothing, reduction="none")


def xvlm_smoothing(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """X-VLM's own rule: mass 1 - smoothing on the label, smoothing / V on each other word.

    So the label lacks the smoothing / V that the library's rule gives it, and the masses sum to 1 - smoothing / V.
    """
    words = F.log_softmax(logits.float(), dim=-1)
    label = words.gather(-1, labels.clamp(min=0)[:, None])[:, 0]
    spread = smoothing / logits.shape[-1]
    loss = -(1 - smoothing - spread) * label - spread * words.sum(dim=-1)
    return loss.masked_fill(labels == IGNORED, 0)


Smoothing = Callable[[Tensor, Tensor, float], Tensor]


def token_losses(logits: Tensor, labels: Tensor, smoothing: float, rule: Smoothing = library_smoothing) -> Tensor:
    """Loss of predicting token t + 1 at position t: logits [b, t, V], labels [b, t] -> [b, t - 1]; ignored ones 0."""
    b, t, v = logits.shape
    losses = rule(logits[:, :-1].reshape(-1, v).float(), labels[:, 1:].reshape(-1), smoothing)
    return losses.reshape(b, t - 1)


def mean_token_loss(logits: Tensor, labels: Tensor, smoothing: float, rule: Smoothing = library_smoothing) -> Tensor:
    """Mean over the tokens that count. Scalar; 0 when none does."""
    counted = (labels[:, 1:] != IGNORED).sum().clamp(min=1)
    return token_losses(logits, labels, smoothing, rule).sum() / counted


def for_texts(states: Tensor, image_of: Tensor | None) -> Tensor:
    """States of images [i, p, d], one row for each text [b, p, d]; image_of: [b] int64, None where i = b already."""
    return states if image_of is None else states.index_select(0, image_of)
