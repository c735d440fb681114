"""Readers that only the mini world can serve: scenes with a label for every patch, and captions without images."""

from __future__ import annotations

import random
from typing import Any

import torch
from PIL import Image

from data.miniworld import dense_labels, paint, scene_for
from data.readers import Batch, ReaderConfig, masked_fields, masked_text, one_text
from data.sources import Pairs
from data.tokenizer import Tokenizer
from data.transforms import to_normalised
from models.base import ImageShape

LABELS = {"shape": 8, "colour": 8, "texture": 4, "size": 2}
"""Kinds of patch labels and their number of classes, in the order of `dense_labels`' last axis."""


class _Endless:
    """Scenes are drawn when asked for; an epoch is as long as one cares to call it."""

    paths: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 1 << 20

    def name(self, index: int) -> str:
        """How to call scene `index`."""
        return f"scene {index}"

    def file(self, index: int) -> None:
        """Scenes have no files."""
        return


class DenseScenes:
    """Side `scenes` of the vision stage: pictures painted on the fly."""

    reads_text = False

    def __init__(self, config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer):
        self.source = _Endless()
        self._patch = shape.patch_size
        self._transform = to_normalised(shape)

    def sample(self, index: int, rng: random.Random) -> Any:
        """Image [3, 64, 64] and labels [p - 1, 4]."""
        scene = scene_for("dense", index)
        labels = torch.from_numpy(dense_labels(scene, self._patch)).long()
        return self._transform(Image.fromarray(paint(scene))), labels

    def collate(self, samples: list[Any], size: int, rng: random.Random) -> Batch:
        """image [b, 3, 64, 64], labels [b, p - 1, 4] int64."""
        images, labels = zip(*samples, strict=True)
        return {"image": torch.stack(images), "labels": torch.stack(labels)}


class MaskedTexts:
    """Side `texts` of the text stage: captions of pairs, words masked, images not opened."""

    reads_text = True

    def __init__(self, config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer):
        self.source = Pairs(config.files)
        self._config, self._tokenizer = config, tokenizer

    def sample(self, index: int, rng: random.Random) -> Any:
        """Token ids, masked ids, masked positions, original ids there."""
        text = one_text(self.source.caption(index), self.source.name(index), self._config.max_words, rng)
        return masked_text(text, self._config, self._tokenizer, rng)

    def collate(self, samples: list[Any], size: int, rng: random.Random) -> Batch:
        """text_ids, text_atts, text_ids_masked [b, L], masked_pos, masked_ids [b, m]."""
        return masked_fields(list(zip(*samples, strict=True)), self._config, self._tokenizer)
