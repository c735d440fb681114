"""VQA by ranking a list of answers with the decoder.

First the first word of every answer is scored at once, then the best `k` answers of each question are scored in full.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Losses = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""ids, atts [n, t], question states [n, s, d], their atts [n, s] -> summed loss of each answer [n]."""

AT_ONCE = 2048
"""Most answers scored in one pass, at least those of one question.

With 30,000 words their logits take 250 MB per token position.
"""


def first_word_probabilities(logits: Tensor, first_words: Tensor) -> Tensor:
    """logits [b, V] of the word after the start mark, first_words [a] ids -> probability of each answer [b, a]."""
    return logits.float().softmax(dim=-1).index_select(1, first_words)


def best_answers(probabilities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k likeliest of [b, a], ties by the order of the list: their probabilities and numbers, both [b, k]."""
    order = probabilities.sort(dim=1, descending=True, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def full_losses(
    losses: Losses, ids: Tensor, atts: Tensor, numbers: Tensor, states: Tensor, states_atts: Tensor
) -> Tensor:
    """Summed loss of each candidate: answers ids, atts [a, t]; numbers [b, k] of the list -> [b, k]."""
    b, k = numbers.shape
    together = max(1, AT_ONCE // k)
    found = []
    for start in range(0, b, together):
        part = slice(start, start + together)
        chosen = numbers[part].reshape(-1)
        over = (x[part].repeat_interleave(k, dim=0) for x in (states, states_atts))
        found.append(losses(ids[chosen], atts[chosen], *over))
    return torch.cat(found).reshape(b, k)


def pick(scores: Tensor, numbers: Tensor) -> Tensor:
    """The number of the answer with the highest score: scores, numbers [b, k] -> [b]."""
    return numbers.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]


def weighted_answer_loss(losses: Tensor, weights: Tensor, questions: int) -> Tensor:
    """Sum of weight times loss over all answers [n], divided by the number of questions. Scalar."""
    return torch.dot(weights.to(losses.dtype), losses) / questions
