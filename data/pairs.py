"""Batches of images with one caption each: BLIP's sides, and X-VLM's general side, which hides some of the words.

`Texts` are the captions alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from configs.limits import at_least
from console.errors import InputError
from data.masking import masked_fields, masked_text
from data.readers import Batch, ImageConfig, MaskedConfig, ReaderConfig, Sample, TextConfig
from data.sources import Files, Pairs
from data.text import one_text
from data.tokenizer import Tokenizer
from data.transforms import training_transform
from models.base import ImageShape


class PlainPairs:
    """Whole images and texts `[CLS] words`, with `[SEP]` if `sep` is set. Base of the other readers of pairs."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageConfig, TextConfig):
        """Options of images and of texts."""

    def __init__(self, config: Config, shape: ImageShape, tokenizer: Tokenizer):
        self.source = Pairs(config.files)
        self._config, self._tokenizer = config, tokenizer
        self._transform = training_transform(shape, config.augmentation)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W] and token ids."""
        image, caption = self.source.read(index)
        text = one_text(caption, self.source.name(index), self._config.max_words, rng)
        return self._transform(image), self._tokenizer.encode(text, self._config.sep, self._config.max_tokens)

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [b, 3, H, W], text_ids, text_atts [b, L]."""
        images, texts = zip(*samples, strict=True)
        ids, atts = self._tokenizer.pad_batch(texts, self._config.max_tokens)
        return {"image": torch.stack(images), "text_ids": ids, "text_atts": atts}


class MLMPairs(PlainPairs):
    """The same with some words masked."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageConfig, MaskedConfig):
        """Options of images and of masked texts."""

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W], token ids, masked ids, masked positions, original ids there."""
        image, caption = self.source.read(index)
        text = one_text(caption, self.source.name(index), self._config.max_words, rng)
        return self._transform(image), *masked_text(text, self._config, self._tokenizer, rng)

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [b, 3, H, W], text_ids, text_atts, text_ids_masked [b, L], masked_pos, masked_ids [b, m]."""
        images, *texts = zip(*samples, strict=True)
        return {"image": torch.stack(images)} | masked_fields(texts, self._config, self._tokenizer)


class Captions(Pairs):
    """The captions of pairs, whose images are not opened and need not exist."""

    def file(self, index: int) -> None:
        """None: images are not needed."""


class Texts:
    """Captions without their images, for encoders of text alone."""

    Config = TextConfig

    def __init__(self, config: TextConfig, shape: ImageShape, tokenizer: Tokenizer):
        self.source = Captions(config.files)
        self._config, self._tokenizer = config, tokenizer

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Token ids."""
        text = one_text(self.source.known(index), self.source.name(index), self._config.max_words, rng)
        return self._tokenizer.encode(text, self._config.sep, self._config.max_tokens)

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """text_ids, text_atts [b, L]."""
        ids, atts = self._tokenizer.pad_batch(samples, self._config.max_tokens)
        return {"text_ids": ids, "text_atts": atts}


class ProcessedPairs:
    """Pairs as a generative model's own processor makes inputs of them."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ReaderConfig):
        """Options of images and of texts."""

        files: Files  # where images and annotations are
        max_words: int = 40  # words kept of a text
        longest_side: int = 448  # pixels; larger images are shrunk, for models that read any size

        def __post_init__(self) -> None:
            at_least(self, 1, "max_words", "longest_side")

    def __init__(self, config: Config, shape: ImageShape, processor: Any):
        if not hasattr(processor, "batch"):
            raise InputError(
                "the reader 'processed_pairs' needs the model's own processor, but the model has none: put its files "
                "(preprocessor_config.json, processor_config.json, those of the tokenizer) next to config.json"
            )
        self.source = Pairs(config.files)
        self._config, self._processor = config, processor

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image (PIL) and text."""
        image, caption = self.source.read(index)
        text = one_text(caption, self.source.name(index), self._config.max_words, rng)
        image.thumbnail((self._config.longest_side, self._config.longest_side))
        return image, text

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """input_ids, attention_mask [b, t], pixel_values, and what else the model reads."""
        images, texts = zip(*samples, strict=True)
        return self._processor.batch(list(images), list(texts))
