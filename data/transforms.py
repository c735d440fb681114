"""Image transforms of training and evaluation, from PIL images to normalised tensors [3, H, W] float32."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from configs.limits import at_least, probabilities, shares_of_area
from console.errors import InputError
from data.randaugment import ALL_OPS, COLOUR_OPS, LEVELS, RandAugment
from models.base import ImageShape

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = InterpolationMode.BICUBIC


@dataclass(frozen=True)
class Augmentation:
    """How training images vary.

    crop: smallest and largest share of the area kept by the random resized crop. flip: probability of mirroring.
    ops, level: RandAugment(ops, level); 0 ops: none.
    """

    crop: list[float] = field(default_factory=lambda: [0.2, 1.0])
    flip: float = 0.5
    ops: int = 2
    level: int = 7

    def __post_init__(self) -> None:
        shares_of_area("crop", self.crop)
        probabilities(self, "flip")
        at_least(self, 0, "ops", "level")
        if self.level > LEVELS:
            raise InputError(f"level is one of RandAugment's, from 0 to {LEVELS}, not {self.level}")


@dataclass(frozen=True)
class Views:
    """How the crops of DINO's multi-crop vary; the defaults are its own (blur and solarisation are left out).

    large, small: smallest and largest share of the area that the two large and the small crops keep. flip: probability
    of mirroring. jitter: brightness, contrast, saturation, hue, with probability `jitter_chance`. grey: probability
    of losing all colour.
    """

    large: list[float] = field(default_factory=lambda: [0.4, 1.0])
    small: list[float] = field(default_factory=lambda: [0.05, 0.4])
    flip: float = 0.5
    jitter: list[float] = field(default_factory=lambda: [0.4, 0.4, 0.2, 0.1])
    jitter_chance: float = 0.8
    grey: float = 0.2

    def __post_init__(self) -> None:
        shares_of_area("large", self.large)
        shares_of_area("small", self.small)
        probabilities(self, "flip", "jitter_chance", "grey")
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise InputError(f"jitter is four numbers from 0 up, the last (hue) up to 0.5, not {self.jitter}")

    def transform(self, side: int, area: list[float], shape: ImageShape) -> T.Compose:
        """PIL image -> a view of `side` pixels that keeps a share of the area in the range `area`, normalised."""
        low, high = area
        return T.Compose(
            [
                T.RandomResizedCrop(side, scale=(low, high), interpolation=BICUBIC),
                T.RandomHorizontalFlip(self.flip),
                T.RandomApply([T.ColorJitter(*self.jitter)], p=self.jitter_chance),
                T.RandomGrayscale(self.grey),
                to_normalised(shape),
            ]
        )


def to_normalised(shape: ImageShape) -> T.Compose:
    """PIL image -> tensor [3, H, W]; CLIP's mean and deviation unless the model has its own (DINO has not)."""
    return T.Compose([T.ToTensor(), T.Normalize(shape.mean or CLIP_MEAN, shape.std or CLIP_STD)])


def to_picture(image: Tensor, shape: ImageShape) -> np.ndarray:
    """The inverse of `to_normalised`: a tensor [3, H, W] -> what a model was shown, [H, W, 3] uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (shape.mean or CLIP_MEAN, shape.std or CLIP_STD))
    pixels = (image.cpu() * std + mean).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(1, 2, 0).numpy()


def training_transform(shape: ImageShape, augmentation: Augmentation) -> T.Compose:
    """Random resized crop, flip, RandAugment over all ops, normalise."""
    low, high = augmentation.crop
    whole = low == high == 1.0
    side = shape.image_size
    return T.Compose(
        [
            T.Resize((side, side), interpolation=BICUBIC)
            if whole
            else T.RandomResizedCrop(side, scale=(low, high), interpolation=BICUBIC),
            T.RandomHorizontalFlip(augmentation.flip),
            RandAugment(augmentation.ops, augmentation.level, ALL_OPS),
            to_normalised(shape),
        ]
    )


def region_transform(shape: ImageShape, augmentation: Augmentation) -> T.Compose:
    """What is left to do after the region sampler's own crop and flip: colour ops, normalise."""
    return T.Compose([RandAugment(augmentation.ops, augmentation.level, COLOUR_OPS), to_normalised(shape)])


def evaluation_transform(shape: ImageShape) -> T.Compose:
    """Resize to the exact square, normalise."""
    side = (shape.image_size, shape.image_size)
    return T.Compose([T.Resize(side, interpolation=BICUBIC), to_normalised(shape)])
