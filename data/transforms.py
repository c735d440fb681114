"""Image transforms of training and evaluation, from PIL images to normalised tensors [3, H, W] float32.

RandAugment (Cubuk et al., 2020) is X-VLM's and BLIP's, in the variant of the ALBEF family: ops drawn with replacement,
each run with probability one half, at a fixed level from 0 to 10, grey fill, bilinear warps. Random numbers come from
torch's global generator, which the batches seed for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from configs.limits import at_least, probabilities, shares_of_area
from console.errors import InputError
from models.base import ImageShape

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = InterpolationMode.BICUBIC
BILINEAR = InterpolationMode.BILINEAR
GREY = (128, 128, 128)
LEVELS = 10
"""RandAugment's highest level."""

Op = Callable[[Image.Image, float], Image.Image]


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation of training images."""

    crop: list[float] = field(default_factory=lambda: [0.2, 1.0])  # smallest and largest share of the area that is kept
    flip: float = 0.5  # probability of mirroring
    ops: int = 2  # number of RandAugment operations; 0: none
    level: int = 7  # RandAugment's strength, of 10

    def __post_init__(self) -> None:
        shares_of_area("crop", self.crop)
        probabilities(self, "flip")
        at_least(self, 0, "ops", "level")
        if self.level > LEVELS:
            raise InputError(f"level is one of RandAugment's, from 0 to {LEVELS}, not {self.level}")


def _sign() -> int:
    return 1 if torch.rand(()) < 0.5 else -1


def _warp(image: Image.Image, *matrix: float) -> Image.Image:
    """Affine warp: the pixel at (x, y) comes from (ax + by + c, dx + ey + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


def _enhanced(level: float) -> float:
    return level / 10 * 1.8 + 0.1


def _rotate(image: Image.Image, level: float) -> Image.Image:
    return image.rotate(_sign() * 30 * level / 10, Image.Resampling.BILINEAR, fillcolor=GREY)


COLOUR_OPS: dict[str, Op] = {
    "Identity": lambda image, level: image,
    "AutoContrast": lambda image, level: ImageOps.autocontrast(image),
    "Equalize": lambda image, level: ImageOps.equalize(image),
    "Brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(_enhanced(level)),
    "Sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(_enhanced(level)),
}
"""Operations that keep pixels in place: the only ones for region data, whose boxes must stay correct."""

ALL_OPS: dict[str, Op] = COLOUR_OPS | {
    "ShearX": lambda image, level: _warp(image, 1, _sign() * 0.3 * level / 10, 0, 0, 1, 0),
    "ShearY": lambda image, level: _warp(image, 1, 0, 0, _sign() * 0.3 * level / 10, 1, 0),
    "TranslateX": lambda image, level: _warp(image, 1, 0, _sign() * 10 * level / 10, 0, 1, 0),
    "TranslateY": lambda image, level: _warp(image, 1, 0, 0, 0, 1, _sign() * 10 * level / 10),
    "Rotate": _rotate,
}


class RandAugment:
    """Run `number` ops drawn uniformly from `ops`, each with probability one half, at level `level` of 10."""

    def __init__(self, number: int, level: int, ops: dict[str, Op]):
        self.number, self.level, self.ops = number, level, ops

    def __call__(self, image: Image.Image) -> Image.Image:
        """RGB image in, RGB image of the same size out."""
        names = list(self.ops)
        for _ in range(self.number):
            name = names[math.floor(torch.rand(()).item() * len(names))]
            if torch.rand(()) < 0.5:
                image = self.ops[name](image, self.level)
        return image


def to_normalised(shape: ImageShape) -> T.Compose:
    """PIL image -> tensor [3, H, W]; CLIP's mean and deviation unless the model has its own (DINO has not)."""
    return T.Compose([T.ToTensor(), T.Normalize(shape.mean or CLIP_MEAN, shape.std or CLIP_STD)])


def to_picture(image: Tensor, shape: ImageShape) -> np.ndarray:
    """The inverse of `to_normalised`: a tensor [3, H, W] -> a picture [H, W, 3] uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (shape.mean or CLIP_MEAN, shape.std or CLIP_STD))
    pixels = (image.cpu() * std + mean).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(1, 2, 0).numpy()


def training_transform(shape: ImageShape, augmentation: Augmentation) -> T.Compose:
    """Random resized crop, flip, RandAugment over all ops, normalise."""
    low, high = augmentation.crop
    side = shape.image_size
    crop = T.RandomResizedCrop(side, scale=(low, high), interpolation=BICUBIC)
    if low == high == 1.0:  # a random resized crop would still change the aspect ratio
        crop = T.Resize((side, side), interpolation=BICUBIC)
    ops = RandAugment(augmentation.ops, augmentation.level, ALL_OPS)
    return T.Compose([crop, T.RandomHorizontalFlip(augmentation.flip), ops, to_normalised(shape)])


def region_transform(shape: ImageShape, augmentation: Augmentation) -> T.Compose:
    """Colour ops and normalisation, after the region sampler's own crop and flip."""
    return T.Compose([RandAugment(augmentation.ops, augmentation.level, COLOUR_OPS), to_normalised(shape)])


def evaluation_transform(shape: ImageShape) -> T.Compose:
    """Resize to the exact square, normalise."""
    side = (shape.image_size, shape.image_size)
    return T.Compose([T.Resize(side, interpolation=BICUBIC), to_normalised(shape)])


def centre_transform(shape: ImageShape, share: float = 224 / 256) -> T.Compose:
    """Resize the shorter side so that the model's square is `share` of it, cut the middle out, normalise."""
    side = shape.image_size
    return T.Compose([T.Resize(round(side / share), interpolation=BICUBIC), T.CenterCrop(side), to_normalised(shape)])


def square_picture(side: int) -> T.Compose:
    """PIL image -> picture in [0, 1], [3, side, side] float32, not normalised: resized to the exact square."""
    return T.Compose([T.Resize((side, side), interpolation=BILINEAR), T.ToTensor()])


def varied_picture(side: int, flip: float) -> T.Compose:
    """A picture as of `square_picture`, cut at random out of a square 9/8 as large, and mirrored with probability flip.

    A prompt is added to it before it is normalised, as published for VPNs (Jin et al., AAAI 2025).
    """
    larger = round(side * 9 / 8)
    resize = T.Resize((larger, larger), interpolation=BILINEAR)
    return T.Compose([resize, T.RandomCrop(side), T.RandomHorizontalFlip(flip), T.ToTensor()])
