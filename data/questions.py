"""Questions on images with weighted answers, for training and evaluation: VQA 2 and Visual Genome QA.

Goyal et al., CVPR 2017; Krishna et al., IJCV 2017. The accuracy of answers: evaluation/vqa.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import ImageOps
from torch import Tensor

from configs.limits import at_least
from console.errors import InputError
from console.words import counted
from data.evaluation_batches import EvaluationData, shared_images
from data.readers import Batch, ImageConfig, Sample, TextConfig
from data.records import (
    Checks,
    Id,
    Record,
    check_fields,
    check_ids,
    is_answer,
    is_id,
    is_text,
    join_root,
    read_json,
    refuse_repeats,
)  # fmt: skip
from data.sources import ByImage, Files, Records
from data.text import pre_question
from data.tokenizer import Tokenizer
from data.transforms import evaluation_transform, training_transform
from models.base import ImageShape

EVALUATION_WORDS = 50  # of a question; training keeps fewer (`max_words`)


class QuestionRecords(Records):
    """Questions of several files as one numbered list.

    A record: {"question_id", "question", "answer": one text or those of ten people, "image", "dataset"?}. Images of the
    data set `vqa` (also where none is named) lie below image_roots["vqa"]; of `vg` the file's name alone counts, below
    image_roots["vg"]; paths of `gqa` are used as they are.
    """

    def __init__(self, files: Files, answered: bool):
        """answered: whether every record must have an answer."""
        files = files.resolved()

        def place(record: Record, where: str) -> str:
            dataset, image = record.get("dataset") or "vqa", record["image"]
            if dataset == "gqa":
                return join_root(files.root, image)
            alone = dataset == "vg" and files.image_roots
            return files.image(PurePosixPath(image).name if alone else image, dataset, where)

        checks: Checks = {"image": is_text, "question": is_text} | ({"answer": is_answer} if answered else {})
        super().__init__(files, checks, place)
        self._check_given("file of questions")


class Questions:
    """Reader of training batches: images, questions, and all their answers one after another.

    A sample is one question, or up to `most_of_image` of one image: then the image goes through the tower once, which
    is most of the work of a step, and the batch size counts images. It is mirrored with probability
    `augmentation.flip`, unless a question or an answer says left or right.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageConfig, TextConfig):
        """Options of images and of texts, the weight of answers, and how many questions share an image."""

        single_answer_weight: float = 0.5  # of a question with one answer
        double_sep: bool = False  # whether a second `[SEP]` ends an answer, as in the published BLIP runs
        most_of_image: int = 1  # so many questions of one image, at most, are one sample

        def __post_init__(self) -> None:
            super().__post_init__()
            at_least(self, 1, "most_of_image")
            if not self.single_answer_weight > 0:
                raise InputError(f"single_answer_weight must be above 0, not {self.single_answer_weight}")

    def __init__(self, config: Config, shape: ImageShape, tokenizer: Tokenizer):
        self._questions = QuestionRecords(config.files, answered=True)
        self.source = ByImage(self._questions, config.most_of_image)
        self._config, self._tokenizer = config, tokenizer
        self._transform = training_transform(shape, replace(config.augmentation, flip=0.0))

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W] and its questions: for each the ids, the ids of each answer, the weight of each answer."""
        numbers = self.source.known(index)
        image, _ = self._questions.read(numbers[0])
        config = self._config
        mirrored = rng.random() < config.augmentation.flip
        texts, asked = [], []
        for record in map(self._questions.record, numbers):
            answers, weights = weighted_answers(record["answer"], config.single_answer_weight)
            texts += [record["question"], *answers]
            question = pre_question(record["question"], config.max_words)
            ids = self._tokenizer.encode(question, config.sep, config.max_tokens)
            asked.append((ids, encode_answers(answers, self._tokenizer, config.double_sep), weights))
        if mirrored and not says_left_or_right(texts):
            image = ImageOps.mirror(image)
        return self._transform(image), asked

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """Letters: i images, b questions, t tokens of the longest, a answers of all, u tokens of the longest answer.

        image [i, 3, H, W]; question_ids, question_atts [b, t]; answer_ids, answer_atts [a, u] and answer_weights [a]
        float32, those of the first question first; answer_counts [b] int64, which add up to a; where an image may have
        several questions, image_of [b] int64, the number of each question's image.
        """
        images, asked = zip(*samples, strict=True)
        questions, answers, weights = zip(*(one for of_image in asked for one in of_image), strict=True)
        question_ids, question_atts = self._tokenizer.pad_batch(questions)
        answer_ids, answer_atts = self._tokenizer.pad_batch([ids for of_one in answers for ids in of_one])
        batch = {
            "image": torch.stack(images),
            "question_ids": question_ids,
            "question_atts": question_atts,
            "answer_ids": answer_ids,
            "answer_atts": answer_atts,
            "answer_weights": torch.tensor([weight for of_one in weights for weight in of_one]),
            "answer_counts": torch.tensor([len(of_one) for of_one in answers]),
        }
        if self._config.most_of_image > 1:
            batch["image_of"] = torch.tensor([number for number, of_image in enumerate(asked) for _ in of_image])
        return batch


class QuestionsToAnswer(EvaluationData):
    """Sample i is an image file, the image [3, H, W], question ids and the question's id, `question_ids[i]`.

    Questions keep their first 50 words and are padded to the longest of the batch. Questions of one image that follow
    each other share it: it is read and seen once.
    """

    def __init__(
        self, files: Files, shape: ImageShape, tokenizer: Tokenizer, sep: bool = False, limit: int | None = None
    ):
        """sep: whether `[SEP]` ends a question. limit: use the first `limit` questions only."""
        self.source = QuestionRecords(files, answered=False)
        records = [self.source.record(i) for i in range(len(self.source))[:limit]]
        super().__init__([record["image"] for record in records], evaluation_transform(shape), files.ground)
        self._tokenizer, self._sep = tokenizer, sep
        where = ", ".join(self.source.paths)
        check_fields(records, where, {"question_id": is_id})
        self.question_ids: list[Id] = [record["question_id"] for record in records]
        check_ids(self.question_ids, where)
        self._latest: tuple[str, Tensor] | None = None

    def __getitem__(self, i: int) -> tuple[str, Tensor, list[int], Id]:
        question = pre_question(self.source.record(i)["question"], EVALUATION_WORDS)
        if self._latest is None or self._latest[0] != self.images[i]:
            self._latest = self.images[i], self.picture(i)
        return *self._latest, self._tokenizer.encode(question, self._sep, None), self.question_ids[i]

    def pictures(self) -> dict[Id, int]:
        """The number of the picture of each question, by question id: pictures in the order of first appearance."""
        numbers = {image: number for number, image in enumerate(dict.fromkeys(self.images))}
        return dict(zip(self.question_ids, map(numbers.__getitem__, self.images), strict=True))

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        """image [i, 3, H, W], image_of [b] int64, question_ids, question_atts [b, t]; question_id, a list of b ids."""
        files, images, questions, asked = zip(*samples, strict=True)
        ids, atts = self._tokenizer.pad_batch(questions)
        batch = {"question_ids": ids, "question_atts": atts, "question_id": list(asked)}
        return shared_images(files, images) | batch


def weighted_answers(answer: str | list[str], single_weight: float) -> tuple[list[str], list[float]]:
    """The different answers with their shares of all answers; a text is the only answer, of `single_weight`."""
    if isinstance(answer, str):
        return [answer], [single_weight]
    counts = Counter(answer)  # in the order of first appearance
    return list(counts), [count / len(answer) for count in counts.values()]


def encode_answers(answers: Sequence[str], tokenizer: Tokenizer, double_sep: bool = False) -> list[list[int]]:
    """Ids `[CLS] answer [SEP]` of each, for training and for ranking; double_sep: with a second `[SEP]` at the end."""
    encoded = [tokenizer.encode(answer, True, None) for answer in answers]
    return [[*ids, ids[-1]] for ids in encoded] if double_sep else encoded


def says_left_or_right(texts: Sequence[str]) -> bool:
    """Whether left or right is part of any text, in any case, as in the published guard also within `bright`."""
    text = "\n".join(texts).lower()
    return "left" in text or "right" in text


def read_answer_list(path: Path | str, k_test: int) -> list[str]:
    """The answers that evaluation ranks, in the file's order, which breaks ties.

    InputError when the file is not a list of texts, repeats one, or is shorter than `k_test`.
    """
    answers = read_json(path)
    if not isinstance(answers, list) or not all(map(is_text, answers)):
        raise InputError(f'{path} must be one list of answers (["yes", "no", ...]), but it is not: check the file')
    refuse_repeats(answers, str(path))
    if len(answers) < k_test:
        raise InputError(
            f"{path} has {counted(len(answers), 'answer')}, but k_test asks for the best {k_test} of them: lower "
            "k_test or fetch the whole list"
        )
    return answers
