"""The standard accuracy of visual question answering, and the file of answers that EvalAI takes.

Antol et al., ICCV 2015, with the answer processing of the official evaluation of VQA 2 (visualqa.org): the accuracy of
an answer is min(1, matches / 3) with nine people's answers, averaged over the ten ways to leave one of ten people out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from console.errors import InputError
from console.words import counted
from data.records import Id, Record, check_fields, check_ids, check_same_kind, is_id, read_json_list
from storage.atomic import write_json

SIGNS = ';/[]"{}()=+\\_-><@`,?!'
"""Removed punctuation; apostrophes (girl's) and colons (2:50) stay, periods have a rule of their own."""

ARTICLES = {"a", "an", "the"}

NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5"}
NUMBERS |= {"six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10"}

CONTRACTIONS = """
    ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't oughtn't
    shan't shouldn't wasn't weren't won't wouldn't
    could've might've must've not've should've they've we've what've where've who've would've you've
    he'd how'd it'd someone'd something'd there'd they'd where'd who'd you'd
    how'll it'll somebody'll someone'll something'll they'll what'll who'll why'll you'll
    there're they're what're why're you're
    he's how's somebody's someone's that's there's what's when's where's who's why's
    couldn't've hadn't've mightn't've shouldn't've wouldn't've
    he'd've it'd've she'd've somebody'd've someone'd've something'd've there'd've they'd've we'd've who'd've you'd've
    ma'am o'clock 'ow's'at 'twas y'all y'all'll y'all'd've
"""
"""Every contraction that the official list corrects."""


def misspelled(contraction: str) -> list[str]:
    """The contraction with any one of its apostrophes left out."""
    places = [place for place, sign in enumerate(contraction) if sign == "'"]
    return [contraction[:place] + contraction[place + 1 :] for place in places]


# The last one is an error of the official list, kept so that accuracies are the official ones.
FIXED = {wrong: right for right in CONTRACTIONS.split() for wrong in misspelled(right)} | {"somebody'd": "somebodyd"}

_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


def normalise(answer: str) -> str:
    """The answer as the official evaluation compares it: punctuation, capitals, number words, articles, contractions.

    A punctuation sign becomes a space; it is removed if it is next to a space anywhere in the answer. If the answer has
    a comma between digits (100,978), all signs are removed.
    """
    in_number = _COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for sign in SIGNS:
        beside_space = f"{sign} " in answer or f" {sign}" in answer
        text = text.replace(sign, "" if beside_space or in_number else " ")
    words = [NUMBERS.get(word, word) for word in _PERIOD.sub("", text).lower().split()]
    return " ".join(FIXED.get(word, word) for word in words if word not in ARTICLES)


def answer_accuracy(answer: str, people: Sequence[str]) -> float:
    """The accuracy of an answer, from 0 to 1: the mean over each person left out of min(1, matches among the rest / 3).

    Where all people agree to the letter nothing is normalised, as officially: their answer may be a text in the image.
    """
    answer, people = _trimmed(answer), [_trimmed(said) for said in people]
    if len(set(people)) > 1:
        answer, people = normalise(answer), [normalise(said) for said in people]
    matches = [said == answer for said in people]
    total = sum(matches)
    return sum(min(1.0, (total - own) / 3) for own in matches) / len(matches)


def vqa_accuracy(answers: Mapping[Id, str], truth: Sequence[Record]) -> dict[str, Any]:
    """{"overall": percent, "by_kind": {question_type: percent}}, with two digits.

    answers: by question id. truth: records of `read_truth`; those without a question_type count overall only.
    InputError unless the answers are those to its questions.
    """
    single = question_accuracies(answers, truth)
    by_kind: dict[str, list[float]] = defaultdict(list)
    for record in truth:
        if record.get("question_type"):
            by_kind[record["question_type"]].append(single[record["question_id"]])
    overall = _percent(list(single.values()))
    return {"overall": overall, "by_kind": {kind: _percent(by_kind[kind]) for kind in sorted(by_kind)}}


def question_accuracies(answers: Mapping[Id, str], truth: Sequence[Record]) -> dict[Id, float]:
    """How right the answer to each question is, from 0 to 1, by question id as in `truth`; errors as above."""
    people = {record["question_id"]: record["answer"] for record in truth}
    check_answered(answers, list(people))
    return {question: answer_accuracy(answers[question], people[question]) for question in people}


def read_truth(path: Path | str) -> list[Record]:
    """Questions with the answers of several people each: {"question_id", "answer": [...], "question_type"?}.

    InputError for other records, where a question is there twice, and where some ids are numbers and some texts.
    """
    records = read_json_list(path)
    check_fields(records, path, {"question_id": is_id, "answer": _is_answers})
    check_ids([record["question_id"] for record in records], str(path))
    return records


def check_answered(answers: Mapping[Id, str], question_ids: Sequence[Id]) -> None:
    """InputError unless the answers are those to the questions."""
    check_same_kind(question_ids, answers, "the questions", "the answers")
    missing = [question for question in question_ids if question not in answers]
    if missing:
        raise InputError(
            f"{counted(len(missing), 'question', 'is', of=len(question_ids))} not answered (the first is "
            f"{missing[0]!r}): evaluate on the whole file"
        )
    asked = set(question_ids)
    if unknown := [question for question in answers if question not in asked]:
        raise InputError(
            f"{counted(len(unknown), 'answer', 'is')} to questions that were not asked (the first is "
            f"{unknown[0]!r}): evaluate on the file of questions that belongs to them"
        )


def write_answers(path: Path | str, answers: Mapping[Id, str], question_ids: Sequence[Id]) -> None:
    """Write the file that EvalAI takes, [{"question_id": 5001, "answer": "yes"}], in the order of the questions."""
    check_answered(answers, question_ids)
    write_json(path, [{"question_id": question, "answer": answers[question]} for question in question_ids])


def _trimmed(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _percent(shares: list[float]) -> float:
    return round(100 * sum(shares) / len(shares), 2)


def _is_answers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(said, str) for said in value)
