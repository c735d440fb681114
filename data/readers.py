"""Turn samples into batches of named tensors, one reader for each kind of calibration, pretraining or finetuning batch.

Which reader serves which side of which model is written in configs/<model>/*.yaml. Letters: b batch, n regions,
g images, L text length, m masked positions, p image tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from configs.limits import at_least
from configs.registry import Registry
from console.errors import InputError
from data.masking import Masking, mask_tokens
from data.regions import Region, RegionSampling, sample_view
from data.sources import Files, LabelledImages, Pairs, RegionRecords
from data.text import TextError, pre_caption
from data.tokenizer import Tokenizer
from data.transforms import Augmentation, Views, region_transform, training_transform
from models.base import ImageShape

Sample = Any
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class ReaderConfig:
    """One side of the data, as in the `data:` section of a configuration.

    reader: a key of READERS. max_words, max_tokens: limits of a text; sep: whether `[SEP]` ends it.
    careful_flip: do not mirror where a text says left or right (regions only). small_crops: views of an image besides
    the two large ones, and `views` how all of them vary (self-distillation only; none: as DINO's). prompt: what goes
    before every caption (captioning only). single_answer_weight: of a question with one answer; double_sep: whether a
    second `[SEP]` ends an answer, as in the published BLIP runs (questions only). most_of_image: so many texts of one
    image, at most, are one sample, and the image is seen once for all of them (questions and captioning only). splits:
    of a table or an image folder (classification only; none: all).
    """

    reader: str
    files: Files
    max_words: int = 40
    max_tokens: int = 40
    sep: bool = False
    careful_flip: bool = False
    small_crops: int = 4
    views: Views | None = None
    prompt: str = "a picture of "
    single_answer_weight: float = 0.5
    double_sep: bool = False
    most_of_image: int = 1
    splits: list[str] = field(default_factory=list)
    augmentation: Augmentation = field(default_factory=Augmentation)
    masking: Masking = field(default_factory=Masking)
    regions: RegionSampling = field(default_factory=RegionSampling)

    def __post_init__(self) -> None:
        at_least(self, 1, "max_words", "most_of_image")
        at_least(self, 2, "max_tokens")  # [CLS] and a word
        at_least(self, 0, "small_crops", "single_answer_weight")


class Source(Protocol):
    """A numbered list of records."""

    paths: list[str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def file(self, index: int) -> str | None: ...


class Reader(Protocol):
    """Makes samples of a source and batches of samples. reads_text: whether it needs a tokenizer."""

    reads_text: ClassVar[bool]
    source: Source

    def sample(self, index: int, rng: random.Random) -> Sample:
        """One sample; torch's global generator and `rng` are seeded for it. ImageError when it cannot be read."""

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """Samples to tensors; `size` is the batch size asked for."""


class MLMPairs:
    """X-VLM's general side: images, captions `[CLS] words`, some words masked."""

    reads_text = True

    def __init__(self, config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer):
        self.source = Pairs(config.files)
        self._config, self._tokenizer = config, tokenizer
        self._transform = training_transform(shape, config.augmentation)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W], token ids, masked ids, masked positions, original ids there."""
        image, caption = self.source.read(index)
        text = one_text(caption, self.source.name(index), self._config.max_words, rng)
        return self._transform(image), *masked_text(text, self._config, self._tokenizer, rng)

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [b, 3, H, W], text_ids, text_atts, text_ids_masked [b, L], masked_pos, masked_ids [b, m]."""
        images, *texts = zip(*samples, strict=True)
        return {"image": torch.stack(images)} | masked_fields(texts, self._config, self._tokenizer)


class MLMRegions:
    """X-VLM's region side: views of images, texts of their regions, patch masks and boxes."""

    reads_text = True

    def __init__(self, config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer):
        self.source = RegionRecords(config.files)
        self._config, self._shape, self._tokenizer = config, shape, tokenizer
        self._transform = region_transform(shape, config.augmentation)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """A view [3, H, W] and its regions, each with masked text."""
        image, record = self.source.read(index)
        config, shape = self._config, self._shape
        flip = 0.0 if config.careful_flip and says_side(record) else config.augmentation.flip
        view, regions = sample_view(image, record, shape.image_size, shape.patch_size, flip, config.regions, rng)
        texts = []
        for region in regions:
            text = one_text(region.text, self.source.name(index), config.max_words, rng)
            texts.append((region, masked_text(text, config, self._tokenizer, rng)))
        return self._transform(view), texts

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """Exactly `size` = n texts: a random subset of more, repeats of fewer; images without a text are left out.

        image [g, 3, H, W], idx_to_group_img [n], the text fields [n, ...], image_atts [n, p], target_bbox [n, 4],
        is_image [n].
        """
        samples = [sample for sample in samples if sample[1]]
        if not samples:
            raise InputError("a region batch has no text at all: check the region file's captions and boxes")
        texts = [(group, *text) for group, (_, of_image) in enumerate(samples) for text in of_image]
        if len(texts) > size:
            texts = rng.sample(texts, size)
        while len(texts) < size:  # as X-VLM does: resample, again if that is still too few
            texts += rng.sample(texts, min(size - len(texts), len(texts)))
        groups, regions, masked = zip(*texts, strict=True)
        return {
            "image": torch.stack([view for view, _ in samples]),
            "idx_to_group_img": torch.tensor(groups),
            **masked_fields(list(zip(*masked, strict=True)), self._config, self._tokenizer),
            **region_fields(regions),
        }


class PlainPairs:
    """BLIP's sides: whole images and one caption each, `[CLS] words [SEP]`."""

    reads_text = True

    def __init__(self, config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer):
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


class Labelled:
    """DINO's side: images and class labels."""

    reads_text = False

    def __init__(self, config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer | None):
        self.source = LabelledImages(config.files)
        self._transform = training_transform(shape, config.augmentation)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W] and label."""
        image, label = self.source.read(index)
        return self._transform(image), label

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [b, 3, H, W], label [b] int64."""
        images, labels = zip(*samples, strict=True)
        return {"image": torch.stack(images), "label": torch.tensor(labels)}


READERS: Registry[type[Reader]] = Registry(
    "reader",
    {
        "mlm_pairs": "data.readers:MLMPairs",
        "mlm_regions": "data.readers:MLMRegions",
        "pairs": "data.readers:PlainPairs",
        "opposed_pairs": "data.opposites:OpposedPairs",
        "labelled_images": "data.readers:Labelled",
        "dense_scenes": "data.scenes:DenseScenes",
        "multi_crops": "data.crops:MultiCrops",
        "masked_texts": "data.scenes:MaskedTexts",
        "retrieval_pairs": "data.retrieval_training:RetrievalPairs",
        "captions": "data.captioning:Captions",
        "first_stage_captions": "data.captioning:FirstStageCaptions",
        "questions": "data.questions:Questions",
        "classification": "data.classification:Classification",
    },
)
"""Name in the configuration -> class."""


def make_reader(config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer | None) -> Reader:
    """The reader a configuration asks for; InputError for an unknown name, and for texts without a tokenizer."""
    reader = READERS[config.reader]
    if tokenizer is None and reader.reads_text:
        raise InputError(
            f"the reader '{config.reader}' needs a tokenizer, but the model has none: put the tokenizer's files beside "
            "the model's config.json, or calibrate a model of images alone on a folder of class folders "
            "(reader labelled_images, as in configs/hf/prune_images.yaml)"
        )
    return reader(config, shape, tokenizer)


def one_text(caption: str | list[str], name: str, max_words: int, rng: random.Random) -> str:
    """One caption of a list, drawn uniformly, after preprocessing; TextError when nothing is left of it."""
    text = rng.choice(caption) if isinstance(caption, list) else caption
    try:
        return pre_caption(text, max_words)
    except ValueError as error:
        raise TextError(f"{name} (the caption {text!r} has no word)") from error


def says_side(record: dict[str, Any]) -> bool:
    """Whether any text of the record says left or right (as substrings, like the published guard)."""
    texts = str([element["caption"] for element in record["elems"]]) + str(record.get("caption", ""))
    return "left" in texts or "right" in texts


def masked_text(text: str, config: ReaderConfig, tokenizer: Tokenizer, rng: random.Random) -> tuple[list[int], ...]:
    """Token ids (cut to one below max_tokens, as published, then [CLS]), masked ids, positions, original ids."""
    tokens = tokenizer.encode(text, config.sep, config.max_tokens)
    return tokens, *mask_tokens(tokens, tokenizer, config.masking, rng)


def masked_fields(texts: list[Any], config: ReaderConfig, tokenizer: Tokenizer) -> Batch:
    """The text fields of masked language modelling from columns of `masked_text`."""
    tokens, hidden, positions, originals = texts
    ids, atts = tokenizer.pad_batch(tokens, config.max_tokens)
    return {
        "text_ids": ids,
        "text_atts": atts,
        "text_ids_masked": tokenizer.pad_batch(hidden, config.max_tokens)[0],
        "masked_pos": torch.tensor(positions),
        "masked_ids": torch.tensor(originals),
    }


def region_fields(regions: tuple[Region, ...]) -> Batch:
    """image_atts [n, p] and is_image [n] int64, target_bbox [n, 4] float32."""
    return {
        "image_atts": torch.stack([region.patches for region in regions]),
        "target_bbox": torch.tensor([region.box for region in regions]),
        "is_image": torch.tensor([int(region.is_image) for region in regions]),
    }
