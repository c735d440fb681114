"""Captions beside what they would say of the mirrored or overturned picture: hard negatives for matching.

Among the negatives of a batch hardly one differs from the caption in a direction alone, so that matching never has to
read it (Yuksekgonul et al., "When and Why Vision-Language Models Behave Like Bags-of-Words", ICLR 2023, train with
negatives of this kind).
"""

from __future__ import annotations

import random

import torch

from data.readers import Batch, PlainPairs, Sample, one_text

OPPOSITES = {"left": "right", "above": "below", "over": "under", "top": "bottom", "higher": "lower"}
OPPOSITES |= {new: old for old, new in OPPOSITES.items()} | {"beneath": "above"}


def opposite(text: str) -> str | None:
    """The text with one direction for the other, `left of` for `right of`; None where it has none."""
    words = [OPPOSITES.get(word, word) for word in text.split()]
    turned = " ".join(words)
    return None if turned == text else turned


class OpposedPairs(PlainPairs):
    """`pairs`, and beside captions with a direction their opposites."""

    reads_text = True

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W], token ids, and those of the opposite or None."""
        image, caption = self.source.read(index)
        text = one_text(caption, self.source.name(index), self._config.max_words, rng)
        ids, turned = (
            None if said is None else self._tokenizer.encode(said, self._config.sep, self._config.max_tokens)
            for said in (text, opposite(text))
        )
        return self._transform(image), ids, turned

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """As of pairs; besides opposed_of [k] int64, which pairs have an opposite; opposed_ids, opposed_atts [k, t]."""
        batch = super().collate([sample[:2] for sample in samples], size, rng)
        of = [number for number, (_, _, turned) in enumerate(samples) if turned is not None]
        ids, atts = self._tokenizer.pad_batch([samples[number][2] for number in of], self._config.max_tokens)
        return batch | {"opposed_of": torch.tensor(of, dtype=torch.long), "opposed_ids": ids, "opposed_atts": atts}
