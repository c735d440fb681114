"""Answer questions with a VQA model: the best of a list, by the model's own ranking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from data.questions import encode_answers
from data.readers import Batch
from data.tokenizer import Tokenizer


@torch.no_grad()
def answer_questions(
    model: nn.Module, batches: Iterable[Batch], tokenizer: Tokenizer, answers: Sequence[str], k_test: int
) -> dict[int, str]:
    """Question id -> answer, for batches with `image`, `question_ids`, `question_atts` and `question_id` [b].

    model: answers `rank(batch, answer_ids, answer_atts, k)`. k_test: answers that are read out for each question.
    """
    device = next(model.parameters()).device
    ids, atts = (tensor.to(device) for tensor in tokenizer.pad_batch(encode_answers(answers, tokenizer)))
    given: dict[int, str] = {}
    for batch in batches:
        here = {name: tensor.to(device) for name, tensor in batch.items()}
        best = model.rank(here, ids, atts, k_test)
        for question, number in zip(batch["question_id"].tolist(), best.tolist(), strict=True):
            given[question] = answers[number]
    return given
