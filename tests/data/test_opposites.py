"""Captions and their opposites: which words change, and what a batch holds."""

import random

import pytest
import torch

from data.miniworld.readers import OpposedPairs, opposite


@pytest.mark.parametrize(
    ("text", "turned"),
    [
        ("a red disc left of a plain star", "a red disc right of a plain star"),
        ("a star over a ring", "a star under a ring"),
        ("a star beneath a ring", "a star above a ring"),
        ("a ring in the top left", "a ring in the bottom right"),
        ("a ring in the middle", None),
        ("two leftover circles", None),
    ],
)
def test_opposites(text, turned):
    assert opposite(text) == turned


class Words:
    """A tokenizer of numbers: a word's length is its id."""

    def encode(self, text, sep, length):
        return [1, *map(len, text.split())]

    def pad_batch(self, rows, length):
        ids = torch.zeros(len(rows), length, dtype=torch.long)
        for row, words in zip(ids, rows, strict=True):
            row[: len(words)] = torch.tensor(words)
        return ids, (ids > 0).long()


class Captions:
    texts = ("a disc left of it", "a ring", "a disc above it")

    def read(self, index):
        return index, self.texts[index]

    def name(self, index):
        return str(index)


class Settings:
    sep, max_tokens, max_words = False, 6, 40


def test_batches_with_and_without_opposites():
    reader = OpposedPairs.__new__(OpposedPairs)
    reader.source, reader._config, reader._tokenizer = Captions(), Settings(), Words()
    reader._transform = lambda image: torch.full((3, 2, 2), float(image))
    samples = [reader.sample(index, random.Random(0)) for index in range(3)]
    batch = reader.collate(samples, 3, random.Random(0))
    assert batch["opposed_of"].tolist() == [0, 2]
    assert batch["opposed_ids"].tolist() == [[1, 1, 4, 5, 2, 2], [1, 1, 4, 5, 2, 0]]
    assert batch["text_ids"].tolist() == [[1, 1, 4, 4, 2, 2], [1, 1, 4, 0, 0, 0], [1, 1, 4, 5, 2, 0]]
    assert batch["opposed_atts"].tolist()[1] == [1, 1, 1, 1, 1, 0]
    alone = reader.collate(samples[1:2], 1, random.Random(0))
    assert alone["opposed_of"].shape == (0,)
    assert alone["opposed_ids"].shape == (0, 6)
