"""Training batches for image-text retrieval: pairs with the identity of their image, which several captions share."""

from __future__ import annotations

import random

import torch

from console.errors import InputError
from data.readers import Batch, ReaderConfig, Sample, one_text
from data.sources import Pairs
from data.tokenizer import Tokenizer
from data.transforms import training_transform
from models.base import ImageShape


class RetrievalPairs:
    """Reader of records {"image", "image_id", "caption"}; texts are `[CLS] words`, with `[SEP]` where `sep` says so.

    Pairs of the same `idx` are no negatives of one another: `idx` is the rank of the first appearance of `image_id`.
    """

    reads_text = True

    def __init__(self, config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer):
        self.source = Pairs(config.files)
        self._config, self._tokenizer = config, tokenizer
        self._transform = training_transform(shape, config.augmentation)
        ranks: dict[int | str, int] = {}
        self._idx = [ranks.setdefault(_image_id(self.source, i), len(ranks)) for i in range(len(self.source))]

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W], token ids (at most `max_tokens`), and the number of the image."""
        image, caption = self.source.read(index)
        text = one_text(caption, self.source.name(index), self._config.max_words, rng)
        ids = self._tokenizer.encode(text, self._config.sep, self._config.max_tokens)
        return self._transform(image), ids, self._idx[index]

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [b, 3, H, W]; text_ids, text_atts [b, t], t the longest; idx [b] int64."""
        images, texts, numbers = zip(*samples, strict=True)
        ids, atts = self._tokenizer.pad_batch(texts)
        return {"image": torch.stack(images), "text_ids": ids, "text_atts": atts, "idx": torch.tensor(numbers)}


def _image_id(source: Pairs, index: int) -> int | str:
    record = source.record(index)
    image_id = None if record is None else record.get("image_id")
    if not isinstance(image_id, int | str):
        raise InputError(
            f"{source.name(index)}: its record has no usable 'image_id' (a number or a text), by which retrieval knows "
            "which captions share an image: add it"
        )
    return image_id
