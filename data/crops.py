"""DINO's multi-crop views: two large and several small crops of an image, each augmented on its own."""

from __future__ import annotations

import random
from typing import Any

import torch

from console.errors import InputError
from data.readers import Batch, ReaderConfig
from data.sources import LabelledImages
from data.tokenizer import Tokenizer
from data.transforms import Views
from models.base import ImageShape


class MultiCrops:
    """Side `crops`: views of labelled images, labels not used. Small crops are half the side."""

    reads_text = False

    def __init__(self, config: ReaderConfig, shape: ImageShape, tokenizer: Tokenizer | None):
        if config.small_crops < 0:
            raise InputError(f"small_crops must be at least 0, not {config.small_crops}")
        self.source = LabelledImages(config.files)
        self._small, self._small_side = config.small_crops, shape.image_size // 2
        views = config.views or Views()
        self._large_view = views.transform(shape.image_size, views.large, shape)
        self._small_view = views.transform(self._small_side, views.small, shape)

    def sample(self, index: int, rng: random.Random) -> Any:
        """Large views [2, 3, H, W] and small ones [n, 3, H/2, W/2]."""
        image, _ = self.source.read(index)
        large = torch.stack([self._large_view(image) for _ in range(2)])
        small = [self._small_view(image) for _ in range(self._small)]
        return large, torch.stack(small) if small else large.new_empty(0, 3, self._small_side, self._small_side)

    def collate(self, samples: list[Any], size: int, rng: random.Random) -> Batch:
        """global [b, 2, 3, H, W], local [b, n, 3, H/2, W/2]."""
        large, small = zip(*samples, strict=True)
        return {"global": torch.stack(large), "local": torch.stack(small)}
