"""Masked language modelling: choice of the masked words (whole words, sometimes spans of them), and batch fields."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from configs.limits import at_least, probabilities
from data.tokenizer import Tokenizer
from models.base import Batch

if TYPE_CHECKING:
    from data.readers import MaskedConfig

IGNORED = -100
"""Label of positions that the loss skips."""


@dataclass(frozen=True)
class Masking:
    """How tokens are masked."""

    probability: float = 0.25  # share of tokens masked
    most: int = 8  # largest number of masked tokens in a text
    skipgram: float = 0.2  # probability of masking a span of words
    span: int = 3  # longest span

    def __post_init__(self) -> None:
        probabilities(self, "probability", "skipgram")
        at_least(self, 1, "most")
        at_least(self, 2, "span")


def mask_tokens(
    tokens: list[int], tokenizer: Tokenizer, masking: Masking, rng: random.Random
) -> tuple[list[int], list[int], list[int]]:
    """Hide some of `tokens` ([CLS] first, never hidden).

    Returns the tokens with some replaced, the positions hidden and their original ids, both padded to
    `masking.most` (positions with 0, ids with -100, so that the loss skips them).
    """
    budget = min(masking.most, max(1, round(masking.probability * len(tokens))))
    chosen = _choose(tokens, tokenizer, masking, budget, rng)
    hidden = list(tokens)
    for position in chosen:
        draw = rng.random()
        if draw < 0.8:
            hidden[position] = tokenizer.mask
        elif draw < 0.9:
            hidden[position] = rng.randrange(len(tokenizer))
    padding = masking.most - len(chosen)
    originals = [tokens[position] for position in chosen]
    return hidden, chosen + [0] * padding, originals + [IGNORED] * padding


def _choose(tokens: list[int], tokenizer: Tokenizer, masking: Masking, budget: int, rng: random.Random) -> list[int]:
    """Positions to hide: spans grown to whole words, a random subset if there are more than the budget."""
    order = list(range(1, len(tokens)))
    rng.shuffle(order)
    chosen: dict[int, None] = {}  # a set that remembers the order
    for position in order:
        if len(chosen) >= budget:
            break
        if position in chosen:
            continue
        length = rng.randint(2, masking.span) if rng.random() < masking.skipgram else 1
        start, end = position, position + length
        while start > 1 and tokenizer.is_continuation(tokens[start]):
            start -= 1
        while end < len(tokens) and tokenizer.is_continuation(tokens[end]):
            end += 1
        chosen |= dict.fromkeys(range(start, min(end, len(tokens))))
    positions = list(chosen)
    return rng.sample(positions, budget) if len(positions) > budget else positions


def masked_text(text: str, config: MaskedConfig, tokenizer: Tokenizer, rng: random.Random) -> tuple[list[int], ...]:
    """Token ids (cut to one below max_tokens, as published, then [CLS]), masked ids, positions, original ids."""
    tokens = tokenizer.encode(text, config.sep, config.max_tokens)
    return tokens, *mask_tokens(tokens, tokenizer, config.masking, rng)


def masked_fields(texts: list[Any], config: MaskedConfig, tokenizer: Tokenizer) -> Batch:
    """The text fields of masked language modelling from columns of `masked_text`."""
    tokens, hidden, positions, originals = texts
    ids, atts = tokenizer.pad_batch(tokens, config.max_tokens)
    return {
        "text_ids": ids,
        "text_atts": atts,
        "text_ids_masked": tokenizer.pad_batch(hidden, config.max_tokens)[0],
        "masked_pos": torch.tensor(positions),
        "masked_ids": torch.tensor(originals),
    }
