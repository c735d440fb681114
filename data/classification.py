"""Image classification: batches for training and calibration, and evaluation data, of any set of labelled images."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as T

from configs.limits import probabilities
from console.errors import InputError
from data.evaluation_batches import EvaluationData
from data.labelled import LabelledImages, LabelledSet, LabelledSource
from data.readers import Batch, ImageConfig, ReaderConfig, Sample
from data.sources import Files
from data.tokenizer import Tokenizer
from data.transforms import (
    BICUBIC,
    Augmentation,
    centre_transform,
    square_picture,
    to_normalised,
    training_transform,
    varied_picture,
)
from models.base import ImageShape

RECIPE = Augmentation(crop=[0.08, 1.0], flip=0.0, ops=2, level=9)
"""The published augmentation: torchvision's defaults, no mirroring."""


class Labelled:
    """DINO's side, timm models, image classifiers: class folders, varied as for pretraining."""

    Config = ImageConfig

    def __init__(self, config: ImageConfig, shape: ImageShape, tokenizer: Tokenizer | None = None):
        self.source: LabelledSource = LabelledImages(config.files)
        self._transform = training_transform(shape, config.augmentation)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W] and label."""
        image, label = self.source.read(index)
        return self._transform(image), label

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [b, 3, H, W], label [b] int64."""
        return _collated(samples)


class Classification(Labelled):
    """Batches to finetune with. `augmentation` should be that of RECIPE; its `ops` and `level` are torchvision's."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageConfig):
        """Any set of labelled images."""

        splits: list[str] = field(default_factory=list)  # as `LabelledSet` has them

    def __init__(self, config: Config, shape: ImageShape, tokenizer: Tokenizer | None = None):
        self.source = LabelledSet(config.files, config.splits).open()
        self._transform = classification_transform(shape, config.augmentation)


class Pictures:
    """Batches of a prompt's halves: pictures in [0, 1], not normalised, and whether they are to be prompted."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ReaderConfig):
        """clean: resized alone, and prompted; else cut at random and mirrored, and not."""

        files: Files
        splits: list[str] = field(default_factory=list)  # as `LabelledSet` has them
        flip: float = 0.5  # probability of mirroring, of varied pictures
        side: int | None = None  # in pixels; None: the model's
        clean: bool = False

        def __post_init__(self) -> None:
            probabilities(self, "flip")

    def __init__(self, config: Config, shape: ImageShape, tokenizer: Tokenizer | None = None):
        self.source = LabelledSet(config.files, config.splits).open()
        side, self._clean = config.side or shape.image_size, config.clean
        self._transform = square_picture(side) if config.clean else varied_picture(side, config.flip)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Picture [3, i, i] and label."""
        image, label = self.source.read(index)
        return self._transform(image), label

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [b, 3, i, i], label [b] int64, prompted: bool."""
        return _collated(samples) | {"prompted": self._clean}


class ImagesToClassify(EvaluationData):
    """Sample i is the centre [3, H, W] of an image, `share` of the shorter side, and its label."""

    def __init__(
        self,
        images: LabelledSet,
        shape: ImageShape,
        limit: int | None = None,
        share: float = 224 / 256,
        transform: Callable[[Image.Image], Tensor] | None = None,
    ):
        """limit: the first so many images only. transform: another one than the centre's."""
        self.source = images.open()
        super().__init__(range(len(self.source))[:limit], transform or centre_transform(shape, share))

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.picture(i), self.source.known(i)

    def image(self, i: int) -> Image.Image:
        """From the source, which may have it in memory."""
        return self.source.read(i)[0]

    def file(self, i: int) -> str | None:
        """The image file, None where it was seen already or is none of its own."""
        return self.source.file(i)

    def collate(self, samples: list[Any]) -> Batch:
        """image [b, 3, H, W], label [b] int64."""
        return _collated(samples)


def classification_transform(shape: ImageShape, augmentation: Augmentation) -> T.Compose:
    """torchvision's RandAugment, random resized crop, mirroring if any, normalise."""
    low, high = augmentation.crop
    return T.Compose(
        [
            T.RandAugment(augmentation.ops, augmentation.level),
            T.RandomResizedCrop(shape.image_size, scale=(low, high), interpolation=BICUBIC),
            T.RandomHorizontalFlip(augmentation.flip),
            to_normalised(shape),
        ]
    )


def same_classes(training: LabelledSource, test: LabelledSource) -> int:
    """The number of classes of both; InputError when they differ: a missing folder shifts all labels after it."""
    if training.classes != test.classes:
        different = sorted(set(training.classes) ^ set(test.classes))
        shown = ", ".join(different[:10]) + (", ..." if len(different) > 10 else "")
        raise InputError(
            f"training and test images have different classes ({len(training.classes)} and {len(test.classes)}; only "
            f"on one side: {shown}), so their labels mean different things: mend the class folders"
        )
    return len(training.classes)


def _collated(samples: list[Sample]) -> Batch:
    images, labels = zip(*samples, strict=True)
    return {"image": torch.stack(images), "label": torch.tensor(labels)}
