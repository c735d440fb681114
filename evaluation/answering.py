"""Answer questions with a VQA model: rank a list of answers, or generate them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import EncoderDecoderCache

from data.questions import encode_answers
from data.readers import Batch
from data.records import Id
from data.tokenizer import Tokenizer
from models.base import placed
from models.common.beam_search import SearchSettings, beam_search
from models.common.decoding import NextWords
from models.tasks import Answerer


@dataclass(frozen=True)
class AnswerSearch(SearchSettings):
    """Settings of generated answers; lengths include the start token, as in BLIP's release."""

    max_length: int = 10
    min_length: int = 1


@torch.no_grad()
def answer_questions(
    model: Answerer, batches: Iterable[Batch], tokenizer: Tokenizer, answers: Sequence[str], k_test: int
) -> dict[Id, str]:
    """Question id -> answer.

    Batches have `image`, `question_ids`, `question_atts`, `question_id` (b ids), and `image_of` [b], the image of each
    question, where several share one.
    k_test: answers that are scored in full for each question.
    """
    device = next(model.parameters()).device
    ids, atts = (tensor.to(device) for tensor in tokenizer.pad_batch(encode_answers(answers, tokenizer)))
    given: dict[Id, str] = {}
    for batch in batches:
        here = placed(batch, model)
        best = model.rank(here, ids, atts, k_test)
        for question, number in zip(batch["question_id"], best.tolist(), strict=True):
            given[question] = answers[number]
    return given


@torch.no_grad()
def generate_answers(
    model: Answerer, batches: Iterable[Batch], tokenizer: Tokenizer, settings: AnswerSearch
) -> dict[Id, str]:
    """Question id -> answer by beam search of a model that `writes_answers`, for batches as in `answer_questions`."""
    given: dict[Id, str] = {}
    for batch in batches:
        here = placed(batch, model)
        questions = here["question_ids"], here["question_atts"]
        states = model.question_states(here["image"], *questions, here.get("image_of"))
        start = model.answer_start(states)
        beams, atts = (x.repeat_interleave(settings.beams, dim=0) for x in (states, here["question_atts"]))

        def logits(ids: Tensor, all_atts: Tensor, past: EncoderDecoderCache, over: tuple = (beams, atts)) -> Tensor:
            return model.answer_logits(ids, all_atts, *over, past)

        found = beam_search(NextWords(logits), start, tokenizer.sep, tokenizer.pad, settings)
        for question, ids in zip(batch["question_id"], found[:, 1:].tolist(), strict=True):
            given[question] = tokenizer.text(ids)
    return given
