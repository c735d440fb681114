"""Readers make batches of named tensors from the samples of a source, one reader for each kind of batch.

Which reader serves which side of which model is written in configs/<model>/*.yaml. A new one is a class with `Config`,
`source`, `sample` and `collate`, and a line in READERS; docs/data.md lists the fields of the batches.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

from configs.limits import at_least
from configs.registry import Registry
from console.errors import InputError, nearest
from data.masking import Masking
from data.sources import Files, Source
from data.tokenizer import Tokenizer
from data.transforms import Augmentation
from models.base import Batch, ImageShape

Sample = Any


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """One side of the data in a configuration: the name of a reader, and the options of that reader.

    Every reader has a `Config` of its own below this class; what several of them share is in the classes that follow.
    """

    reader: str  # a key of READERS

    @classmethod
    def chosen(cls, mapping: dict[str, Any], where: str) -> type[ReaderConfig]:
        """The Config of the reader that `mapping` names; InputError for an unknown reader, or another one's option."""
        if "reader" not in mapping:
            raise InputError(f"{where}: the key 'reader' is missing: choose one of {', '.join(READERS)}")
        name = str(mapping["reader"])
        try:
            config = READERS[name].Config
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
        own = option_names(config)
        for key in map(str, mapping):
            if key not in own:
                of = [f"'{name}'" for name in READERS if key in option_names(READERS[name].Config)]
                whose = f": it is an option of {', '.join(of)}" if of else ""
                raise InputError(f"{where}: the reader '{name}' has no option '{key}'{nearest(key, own)}{whose}")
        return config


def option_names(config: type[ReaderConfig]) -> set[str]:
    """The keys of a reader's section."""
    return {option.name for option in fields(config)}


@dataclass(frozen=True, kw_only=True)
class ImageConfig(ReaderConfig):
    """Options of readers of images."""

    files: Files  # where images and annotations are
    augmentation: Augmentation = field(default_factory=Augmentation)  # random changes of training images


@dataclass(frozen=True, kw_only=True)
class WordConfig(ReaderConfig):
    """Options of readers of texts, which need a tokenizer."""

    files: Files  # where annotations are
    max_words: int = 40  # words kept of a text
    max_tokens: int = 40  # tokens kept of a text; at least [CLS] and a word

    def __post_init__(self) -> None:
        at_least(self, 1, "max_words")
        at_least(self, 2, "max_tokens")


@dataclass(frozen=True, kw_only=True)
class TextConfig(WordConfig):
    """Options of readers whose texts may end with [SEP]."""

    sep: bool = False  # whether `[SEP]` ends a text


@dataclass(frozen=True, kw_only=True)
class MaskedConfig(TextConfig):
    """Options of readers for masked language modelling."""

    masking: Masking = field(default_factory=Masking)  # how tokens are masked


class Reader(Protocol):
    """Makes samples of a source and batches of samples."""

    Config: ClassVar[type[ReaderConfig]]
    source: Source

    def __init__(self, config: Any, shape: ImageShape, tokenizer: Tokenizer | None): ...

    def sample(self, index: int, rng: random.Random) -> Sample:
        """One sample; torch's global generator and `rng` are seeded for it. ImageError when it cannot be read."""

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """Samples to tensors; `size` is the batch size asked for."""


READERS: Registry[type[Reader]] = Registry(
    "reader",
    {
        "mlm_pairs": "data.pairs:MLMPairs",
        "mlm_regions": "data.regions:MLMRegions",
        "pairs": "data.pairs:PlainPairs",
        "processed_pairs": "data.pairs:ProcessedPairs",
        "texts": "data.pairs:Texts",
        "labelled_images": "data.classification:Labelled",
        "retrieval_pairs": "data.retrieval:RetrievalPairs",
        "captions": "data.captioning:Captions",
        "first_stage_captions": "data.captioning:FirstStageCaptions",
        "questions": "data.questions:Questions",
        "statements": "data.image_pairs:Statements",
        "classification": "data.classification:Classification",
        "pictures": "data.classification:Pictures",
        # of the stages that pretrain the minis
        "dense_scenes": "data.miniworld.readers:DenseScenes",
        "masked_texts": "data.miniworld.readers:MaskedTexts",
        "opposed_pairs": "data.miniworld.readers:OpposedPairs",
        "multi_crops": "data.miniworld.readers:MultiCrops",
    },
)
"""Name in the configuration -> class."""


def make_reader(config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer | None) -> Reader:
    """The reader a configuration asks for; InputError for an unknown name, and for texts without a tokenizer."""
    reader = READERS[config.reader]
    if tokenizer is not None and isinstance(config, WordConfig) and not hasattr(tokenizer, "encode"):
        raise InputError(
            f"the reader '{config.reader}' gives words to a tokenizer, but this model reads what its own processor "
            "makes: take the reader processed_pairs, as in configs/hf/prune_generative.yaml"
        )
    if tokenizer is None and isinstance(config, WordConfig):
        raise InputError(
            f"the reader '{config.reader}' needs a tokenizer, but the model has none: put the tokenizer's files next "
            "to the model's config.json, or calibrate an image model on a folder of class folders "
            "(reader labelled_images, as in configs/hf/prune_images.yaml)"
        )
    return reader(config, shape, tokenizer)
