"""X-VLM's and BLIP's RandAugment: ops drawn with replacement, each run with probability one half.

Cubuk et al., 2020, in the variant of the ALBEF family: fixed level M of 10, grey fill, bilinear warps.
Random numbers come from torch's global generator, which the data sets seed for each sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from PIL import Image, ImageEnhance, ImageOps

GREY = (128, 128, 128)
LEVELS = 10
"""The highest level."""

Op = Callable[[Image.Image, float], Image.Image]


def _sign() -> int:
    return 1 if torch.rand(()) < 0.5 else -1


def _warp(image: Image.Image, *matrix: float) -> Image.Image:
    """Affine warp: the pixel at (x, y) comes from (ax + by + c, dx + ey + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


def _enhanced(level: float) -> float:
    return level / 10 * 1.8 + 0.1


def _rotate(image: Image.Image, level: float) -> Image.Image:
    angle = _sign() * 30 * level / 10
    return image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=GREY)


COLOUR_OPS: dict[str, Op] = {
    "Identity": lambda image, level: image,
    "AutoContrast": lambda image, level: ImageOps.autocontrast(image),
    "Equalize": lambda image, level: ImageOps.equalize(image),
    "Brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(_enhanced(level)),
    "Sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(_enhanced(level)),
}
"""Ops that leave every pixel in its place: the only ones for region data, whose boxes must stay true."""

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
