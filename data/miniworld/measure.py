"""What the world allows and gives away: the best possible retrieval, the best blind guess, variety of words."""

from __future__ import annotations

from collections import Counter
from typing import Any

from data.miniworld.captions import draw_captions
from data.miniworld.checker import retrieval_ceiling
from data.miniworld.parts import SPLITS, scene_for, text_draws
from data.miniworld.questions import Asker, ten_answers
from data.miniworld.words import ANSWERS, SPECIAL, vocabulary


def measure_captions(split: str, scenes: int, seed: int) -> dict[str, Any]:
    """Retrieval ceiling (percent), share of distinct captions (percent), longest caption and words in use."""
    drawn = [scene_for(split, index, seed) for index in range(scenes)]
    phrasing = SPLITS[split].phrasing
    captions = [draw_captions(text_draws(split, i, seed), scene, phrasing, 5) for i, scene in enumerate(drawn)]
    texts = [caption.text for row in captions for caption in row]
    return {
        "split": split,
        "scenes": scenes,
        "text to image R@1, ceiling": retrieval_ceiling([[c.meaning for c in row] for row in captions], drawn),
        "distinct captions, %": 100 * len(set(texts)) / len(texts),
        "longest caption, words": max(len(text.split()) for text in texts),
        "words in use": len({word for text in texts for word in text.split()}),
    }


def measure_questions(split: str, scenes: int, per_scene: int, seed: int) -> list[dict[str, Any]]:
    """By kind of question: how many, how many answers, and what the best constant answer would score.

    `blind guess, %` counts majority answers; `VQA score, %` is the official one over the ten answers.
    """
    asker, answered = Asker(), {kind: [] for kind in ANSWERS}
    for index in range(scenes):
        draws = text_draws(split, index, seed)
        for question in asker.ask(draws, scene_for(split, index, seed), per_scene):
            answered[question.kind].append((question.answer, ten_answers(draws, question)))
    rows = []
    for kind, answers in answered.items():
        count = len(answers)
        most = max(Counter(answer for answer, _ in answers).values())
        score = max(sum(vqa_score(guess, ten) for _, ten in answers) for guess in ANSWERS[kind])
        rows.append(
            {
                "kind": kind,
                "questions": count,
                "answers": len(ANSWERS[kind]),
                "blind guess, %": 100 * most / count,
                "VQA score of it, %": 100 * score / count,
            }
        )
    return rows


def vqa_score(guess: str, answers: list[str]) -> float:
    """The official accuracy of one answer: the mean over leaving out each person in turn of min(1, n / 3)."""
    matches = answers.count(guess)
    others = len(answers) - matches
    return (matches * min(1, (matches - 1) / 3) + others * min(1, matches / 3)) / len(answers)


def word_count() -> int:
    """Words of the vocabulary, the special tokens aside."""
    return len(vocabulary()) - len(SPECIAL)
