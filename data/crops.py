"""DINO's multi-crop views: two large and several small crops of an image, each augmented on its own."""

from __future__ import annotations

import random
from typing import Any

import torch
from torchvision import transforms as T

from data.readers import Batch, ReaderConfig
from data.sources import LabelledImages
from data.tokenizer import Tokenizer
from data.transforms import BICUBIC, to_normalised
from models.base import ImageShape


class MultiCrops:
    """Side `crops`: views of labelled images, labels not used. Small crops are half the side."""

    def __init__(self, config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer | None):
        self.source = LabelledImages(config.files)
        self._small = config.small_crops
        jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)

        def view(size: int, low: float, high: float) -> T.Compose:
            return T.Compose(
                [
                    T.RandomResizedCrop(size, scale=(low, high), interpolation=BICUBIC),
                    T.RandomHorizontalFlip(),
                    jitter,
                    T.RandomGrayscale(0.2),
                    to_normalised(shape),
                ]
            )

        self._large_view = view(shape.image_size, 0.4, 1.0)
        self._small_view = view(shape.image_size // 2, 0.1, 0.4)

    def sample(self, index: int, rng: random.Random) -> Any:
        """Large views [2, 3, H, W] and small ones [n, 3, H/2, W/2]."""
        image, _ = self.source.read(index)
        return (
            torch.stack([self._large_view(image) for _ in range(2)]),
            torch.stack([self._small_view(image) for _ in range(self._small)]),
        )

    def collate(self, samples: list[Any], size: int, rng: random.Random) -> Batch:
        """global [b, 2, 3, H, W], local [b, n, 3, H/2, W/2]."""
        large, small = zip(*samples, strict=True)
        return {"global": torch.stack(large), "local": torch.stack(small)}
