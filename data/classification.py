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

from configs.limits import at_least, probabilities
from console.errors import InputError
from console.words import counted
from data.evaluation_batches import EvaluationData
from data.labelled import LabelledImages, LabelledSet
from data.randomness import permutation
from data.readers import Batch, ImageConfig, ReaderConfig, Sample
from data.sources import Files, LabelledSource
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


class Pictures(Labelled):
    """Batches for a prompt: pictures in [0, 1], not normalised, with a flag whether the prompt is added."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ReaderConfig):
        """Options of a prompt's batches."""

        files: Files  # where the images are
        splits: list[str] = field(default_factory=list)  # as `LabelledSet` has them
        flip: float = 0.5  # probability of mirroring, of varied pictures
        side: int | None = None  # pixels; None: the model's
        clean: bool = False  # prompted: resized only; else a random crop, mirrored, without prompt

        def __post_init__(self) -> None:
            at_least(self, 1, "side")
            probabilities(self, "flip")

    def __init__(self, config: Config, shape: ImageShape, tokenizer: Tokenizer | None = None):
        self.source = LabelledSet(config.files, config.splits).open()
        side, self._clean = config.side or shape.image_size, config.clean
        self._transform = square_picture(side) if config.clean else varied_picture(side, config.flip)

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [b, 3, i, i], label [b] int64, prompted [1] bool."""
        return _collated(samples) | {"prompted": torch.tensor([self._clean])}


class ImagesToClassify(EvaluationData):
    """Sample i is the centre [3, H, W] of an image, `share` of the shorter side, and its label."""

    def __init__(
        self,
        images: LabelledSet | LabelledSource,
        shape: ImageShape,
        limit: int | None = None,
        share: float = 224 / 256,
        transform: Callable[[Image.Image], Tensor] | None = None,
    ):
        """images: a set, opened or not. limit: use the first `limit` only. transform: instead of the centre crop."""
        self.source = images.open() if isinstance(images, LabelledSet) else images
        super().__init__(range(len(self.source))[:limit], transform or centre_transform(shape, share))

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.picture(i), self.source.known(i)

    def image(self, i: int) -> Image.Image:
        """The image from the source, which may have it in memory."""
        return self.source.read(i)[0]

    def file(self, i: int) -> str | None:
        """The image file; None where the source has checked it, or the image has no file of its own."""
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
    """The number of classes that training and test images share.

    InputError when they differ (a missing folder shifts all later labels), when there is only one class, and when a
    class has no training picture: its number would then denote another class.
    """
    if training.classes != test.classes:
        different = sorted(set(training.classes) ^ set(test.classes))
        shown = ", ".join(different[:10]) + (", ..." if len(different) > 10 else "")
        raise InputError(
            f"training and test images have different classes ({len(training.classes)} and {len(test.classes)}; only "
            f"on one side: {shown}), so their labels differ: fix the class folders"
        )
    if len(training.classes) == 1:
        raise InputError(
            f"{training.place} has only one class ('{training.classes[0]}'), and a classifier needs two: name the "
            "folder above it, or add another class"
        )
    seen = {training.known(index) for index in range(len(training))}
    if absent := [label for label in range(len(training.classes)) if label not in seen]:
        name = training.classes[absent[0]]
        called = "" if name == str(absent[0]) else f" ({name})"
        more = f", nor of {counted(len(absent) - 1, 'other class')}" if len(absent) > 1 else ""
        raise InputError(
            f"{training.place} has no picture of class {absent[0]}{called} to train with{more}: add some, or number "
            "the classes without a gap"
        )
    return len(training.classes)


class Subset(LabelledSource):
    """Some images of a source, in its order: image i is its image `numbers[i]`."""

    def __init__(self, source: LabelledSource, numbers: list[int]):
        super().__init__(source.ground)
        self._source, self._images = source, numbers
        self.classes, self.place, self.paths, self.left_out = (
            source.classes,
            source.place,
            source.paths,
            source.left_out,
        )

    def name(self, index: int) -> str:
        """The image's path, or how else the source calls it."""
        return self._source.name(self._images[index])

    def file(self, index: int) -> str | tuple[str, ...] | None:
        """As the source has it."""
        return self._source.file(self._images[index])

    def known(self, index: int) -> int:
        """The label."""
        return self._source.known(self._images[index])

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image and its label; ImageError when the image cannot be read."""
        return self._source.read(self._images[index])


def hold_out(source: LabelledSource, share: float, seed: int) -> tuple[Subset, Subset]:
    """Split images into those to train with and those held out: `share` of each class, rounded, drawn from the seed.

    Every class keeps one image at least. InputError when nothing would be held out.
    """
    of_class: dict[int, list[int]] = {}
    for number in range(len(source)):
        of_class.setdefault(source.known(number), []).append(number)
    held: set[int] = set()
    for label, numbers in of_class.items():
        # One draw per class, which does not depend on the pictures of other classes.
        order = permutation(len(numbers), seed, "validation", label)
        held |= {numbers[i] for i in order[: min(round(share * len(numbers)), len(numbers) - 1)]}
    if not held:
        most = max(map(len, of_class.values()))
        raise InputError(
            f"validation: {share:g} of each class of {source.place} is less than one picture of at most {most}: raise "
            "it, or leave validation out"
        )
    kept = [number for number in range(len(source)) if number not in held]
    return Subset(source, kept), Subset(source, sorted(held))


def _collated(samples: list[Sample]) -> Batch:
    images, labels = zip(*samples, strict=True)
    return {"image": torch.stack(images), "label": torch.tensor(labels)}
