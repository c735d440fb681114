"""VQA as a finetuning task: a loss on weighted answers; evaluation by ranking a list of answers, or by generation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from configs.limits import at_least
from console.errors import InputError, nearest
from console.words import counted
from data.evaluation_batches import check_files
from data.questions import QuestionsToAnswer, read_answer_list
from data.readers import Batch
from data.records import Id, Record, check_same_kind
from data.sources import Files
from data.tokenizer import Tokenizer
from data.transforms import to_picture
from evaluation.answering import AnswerSearch, answer_questions, generate_answers
from evaluation.contact_sheet import Line, Part, Sample, Shown, spread
from evaluation.items import Groups, one_group
from evaluation.vqa import answer_accuracy, question_accuracies, read_truth, vqa_accuracy, write_answers
from models import class_of
from training.epoch_weights import Metrics
from training.evaluating import Evaluation
from training.merge import gather_shares
from training.samples import IMAGES
from training.task import Finetuning, Task, check_positions

INFERENCES = ("rank", "generate")


@dataclass(frozen=True, kw_only=True)
class VQAConfig(Finetuning):
    """VQA 2."""

    reads = "questions"

    val: Files  # validation questions
    test: Files  # questions for EvalAI
    answers: str  # file of the answers to rank
    test_answers: str | None = None  # file of the test answers, if they are known
    k_test: int = 128  # answers ranked in full; the first word preselects them
    sep: bool = False  # whether [SEP] ends a question
    eval_batch: int = 64  # questions per forward pass in evaluation
    hold_out: bool = True  # whether `val` is excluded from the training data
    inference: str = "rank"  # rank: choose from `answers`; generate: beam search (BLIP only)
    search: AnswerSearch = field(default_factory=AnswerSearch)  # beam search for generate

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "k_test", "eval_batch")
        if self.inference not in INFERENCES:
            raise InputError(
                f"unknown inference '{self.inference}'{nearest(self.inference, INFERENCES)}: choose one of "
                f"{', '.join(INFERENCES)}"
            )


def with_validation(config: VQAConfig) -> VQAConfig:
    """The published protocol: the validation split is trained on and not evaluated."""
    files = config.train.files
    files = replace(files, annotations=[*files.annotations, *config.val.annotations])
    return replace(config, train=replace(config.train, files=files), hold_out=False)


class VQA(Task):
    """VQA with ranked or generated answers. The last epoch counts, as published."""

    name, words = "vqa", "VQA"
    main = ("overall",)
    metric_words: ClassVar = {"overall": "accuracy"}
    Config = VQAConfig
    decides = None

    def __init__(
        self, config: VQAConfig, model: nn.Module, tokenizer: Tokenizer, folder: Path, limit: int | None = None
    ):
        check_positions(model, {"train: max_tokens": config.train.max_tokens})
        if config.inference == "generate":
            check_positions(model, {"search: max_length": config.search.max_length})
        self._config, self._tokenizer, self._folder = config, tokenizer, folder
        self._shape = model.image_shape
        root = config.val.resolved()
        self._answers: list[str] = []
        if config.inference == "rank":
            self._answers = read_answer_list(root.path(config.answers), config.k_test)
        elif not model.writes_answers:
            raise InputError("this model only ranks answers: set inference to rank, or use a BLIP model")
        self._data, self._truth = {}, {}
        for split, files in (("val", config.val), ("test", config.test)):
            self._data[split] = QuestionsToAnswer(files, model.image_shape, tokenizer, config.sep, limit)
            check_files(self._data[split])
        self._truth["val"] = [record for path in self._data["val"].source.paths for record in read_truth(path)][:limit]
        if config.test_answers is not None:
            self._truth["test"] = truth_of(self._data["test"].question_ids, root.path(config.test_answers))

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy of the answers, weighted."""
        return model(batch)

    def evaluate(self, model: nn.Module, look: Evaluation) -> Metrics:
        """Write answers to result/; returns their accuracy if the correct answers are known."""
        config, split, fabric = self._config, look.split, look.fabric
        if split == "val" and not config.hold_out and look.epoch is not None:  # val is part of the training data
            return {}
        share = look.batches(self._data[split], config.eval_batch)
        if config.inference == "rank":
            given = answer_questions(model, share, self._tokenizer, self._answers, config.k_test)
        else:
            given = generate_answers(model, share, self._tokenizer, config.search)
        given = self._given = gather_shares(fabric, given)
        found: Metrics = {}
        if fabric.is_global_zero:
            name = f"{split}_vqa_result_epoch_{'last' if split == 'test' else look.epoch or 'last'}.json"
            write_answers(self._folder / "result" / name, given, self._data[split].question_ids)
            if split in self._truth:
                found = vqa_accuracy(given, self._truth[split])
        return fabric.broadcast(found)

    def items(self) -> Groups:
        """The accuracy of each answer, if known; several questions may share a picture."""
        if self.split not in self._truth:
            return {}
        single = question_accuracies(self._given, self._truth[self.split])
        return one_group({"overall": single}, self._data[self.split].pictures())

    def samples(self) -> list[Part]:
        """Images with question and answer, and the human answers with their shares if known."""
        data, shown = self._data[self.split], []
        people = {record["question_id"]: record["answer"] for record in self._truth.get(self.split, [])}
        for i in spread(len(data), IMAGES):
            number = data.question_ids[i]
            lines = [Line(data.source.record(i)["question"]), Line(f"answer: {self._given[number]}", "strong")]
            if number in people:
                lines += judged(self._given[number], people[number])
            shown.append(Sample([Shown(to_picture(data[i][1], self._shape))], lines))
        return [Part(f"{counted(len(shown), f'{self.split} question', of=len(data))}, with the answer given", shown)]


def refuse_inheritance(model: str) -> None:
    """InputError for --inherit_mask with a model whose answer decoder has no such choice."""
    known = class_of(model).tasks
    if "vqa" in known and not known["vqa"].may_stay_dense:
        raise InputError(
            f"--inherit_mask is for models that may leave their answer decoder dense; {model}'s is always pruned: "
            "leave it out"
        )


def truth_of(questions: list[Id], path: Path | str) -> list[Record]:
    """The records of a file of answers for these questions, in their order; InputError if one is missing."""
    records = {record["question_id"]: record for record in read_truth(path)}
    check_same_kind(questions, records, "the test questions", f"the answers in {path}")
    if missing := [number for number in questions if number not in records]:
        raise InputError(
            f"{path} has no answer to {counted(len(missing), 'test question', of=len(questions))} (the first "
            f"is {missing[0]!r}): name the file that belongs to `test` under test_answers, or leave that out"
        )
    return [records[number] for number in questions]


def judged(answer: str, people: list[str]) -> list[Line]:
    """Lines with the accuracy of an answer, and the most frequent human answers."""
    right = answer_accuracy(answer, people)
    mark = "right" if right > 0.999 else "partly" if right else "wrong"
    said = ", ".join(
        f"{text}\u00a0{100 * count / len(people):.0f}\u00a0%" for text, count in Counter(people).most_common(4)
    )
    return [
        Line(f"partly right, {100 * right:.0f} %" if mark == "partly" else mark, mark),
        Line(f"people: {said}", "faint"),
    ]
