"""One forward pass of a model on made-up inputs: pruning's pass, or what a task asks of its model.

The shapes are the real ones, the pixels and words are noise: no data set is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from configs.schema import read_yaml, task_file
from models import load_model
from models.base import Batch
from models.common import examples
from models.tasks import load_task_model

WORDS = 30  # tokens of a text, padding included, if the model has that many positions
ANSWER = 6  # tokens of an answer


@dataclass(frozen=True)
class Pass:
    """what: in words; make(model, b) -> a batch of b samples; run(model, batch): the work."""

    what: str
    make: Callable[[nn.Module, int], Batch]
    run: Callable[[nn.Module, Batch], object]


def load_for(name: str, task: str | None, weights: str | None) -> nn.Module:
    """The pretraining model, or the task's with what the task's configuration changes of it (image size)."""
    if task is None:
        return load_model(name, weights=weights)
    return load_task_model(name, task, weights=weights, overrides=read_yaml(task_file(name, task)).get("model", {}))


def example_batch(model: nn.Module, work: Pass, size: int, device: torch.device, dtype: torch.dtype) -> Batch:
    """The same batch of `size` samples on every call, on the device; floating point in `dtype`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = work.make(model, size)
    return {name: t.to(device, dtype if t.is_floating_point() else t.dtype) for name, t in batch.items()}


def _own_example(model: nn.Module, size: int) -> Batch:
    return model.example(size)[model.sides[0]]


def _captioned(model: nn.Module, size: int) -> Batch:
    text = model.config.text
    length = min(WORDS, text.positions)
    # BLIP's last two ids start the decoder and the grounded encoder; no text has them.
    words = examples.texts(size, length, text.vocab_size - 2)
    return examples.images(size, model.image_shape.image_size) | words


def _answered(model: nn.Module, size: int) -> Batch:
    answers = examples.texts(size, ANSWER, model.config.text.vocab_size - 2)
    return _captioned(model, size) | {"answer_ids": answers["text_ids"], "answer_atts": answers["text_atts"]}


def _match(model: nn.Module, batch: Batch) -> object:
    image, image_feature = model.image_entry(batch["image"])
    text, text_feature = model.text_entry(batch["text_ids"], batch["text_atts"])
    return model.match(text, batch["text_atts"], image, (image_feature * text_feature).sum(dim=1))


def _caption(model: nn.Module, batch: Batch) -> object:
    ids = model.caption_start(batch["text_ids"])
    return model.caption_logits(ids, batch["text_atts"], model.image_states(batch["image"]))


def _answer(model: nn.Module, batch: Batch) -> object:
    states = model.question_states(batch["image"], batch["text_ids"], batch["text_atts"])
    return model.answer_losses(batch["answer_ids"], batch["answer_atts"], states, batch["text_atts"])


PASSES = {
    None: Pass("the pass in which every prunable layer is met", _own_example, lambda model, b: model.observe(b)),
    "retrieval": Pass("an image, a text, and how well they match", _captioned, _match),
    "captioning": Pass("an image and the words of one caption", _captioned, _caption),
    "vqa": Pass("an image, a question and one answer", _answered, _answer),
    "image_classification": Pass("an image", _own_example, lambda model, b: model.logits(b["image"])),
}
"""Task (None: no task) -> its pass, by the methods that the task's models have in common."""
