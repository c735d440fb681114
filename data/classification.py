"""Image classification: training batches and evaluation data of CIFAR, Flowers102 and any folder of class folders."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms as T

from console.errors import InputError
from data.cifar import Cifar
from data.evaluation_batches import unreadable
from data.images import ImageError
from data.labelled import LabelledSet, LabelledTable
from data.readers import Batch, ReaderConfig, Sample
from data.sources import LabelledImages
from data.tokenizer import Tokenizer
from data.transforms import BICUBIC, Augmentation, to_normalised
from models.base import ImageShape

RECIPE = Augmentation(crop=[0.08, 1.0], flip=0.0, ops=2, level=9)
"""The published augmentation: torchvision's defaults, no mirroring."""

EVALUATION_SHARE = 224 / 256  # side of the centre crop, as a share of the shorter side


class Classification:
    """Reader of training batches: images and labels. `augmentation` should be that of RECIPE, whose `ops` and `level`
    are torchvision's RandAugment here, not X-VLM's.
    """

    reads_text = False

    def __init__(self, config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer | None = None):
        self.source = LabelledSet(config.files, config.splits).open()
        self._transform = classification_transform(shape, config.augmentation)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W] and label."""
        image, label = self.source.read(index)
        return self._transform(image), label

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [b, 3, H, W], label [b] int64."""
        return _collated(samples)


class ImagesToClassify(Dataset[Any]):
    """Evaluation data (data/evaluation_batches.py): sample i is the centre [3, H, W] of an image, and its label."""

    def __init__(self, labelled: LabelledSet, shape: ImageShape, limit: int | None = None):
        """limit: the first so many images only."""
        self.source = labelled.open()
        self._n = len(self.source) if limit is None else min(limit, len(self.source))
        self._transform = centre_transform(shape)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        try:
            image, label = self.source.read(i)
        except ImageError as error:
            raise unreadable(error) from error
        return self._transform(image), label

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


def centre_transform(shape: ImageShape) -> T.Compose:
    """Shorter side to 256 and centre crop of 224 pixels for a model of 224, in proportion for others; normalise."""
    side = shape.image_size
    return T.Compose(
        [T.Resize(round(side / EVALUATION_SHARE), interpolation=BICUBIC), T.CenterCrop(side), to_normalised(shape)]
    )


def same_classes(training: LabelledImages | LabelledTable | Cifar, test: LabelledImages | LabelledTable | Cifar) -> int:
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
