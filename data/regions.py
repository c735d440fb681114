"""X-VLM's region side: a random view of an image, and the described regions in it.

Zeng et al., ICML 2022 (X-VLM): one crop holds at least one region wholly; others may be clipped.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from configs.limits import at_least, probabilities
from console.errors import InputError
from data.masking import masked_fields, masked_text
from data.readers import Batch, ImageConfig, MaskedConfig, Sample
from data.sources import RegionRecords
from data.text import one_text
from data.tokenizer import Tokenizer
from data.transforms import region_transform
from models.base import ImageShape


@dataclass(frozen=True)
class RegionSampling:
    """How regions are drawn."""

    most: int = 1  # largest number of texts per image
    visible: float = 0.5  # a region is used if more than this share of its box is visible

    def __post_init__(self) -> None:
        at_least(self, 1, "most")
        probabilities(self, "visible")


@dataclass(frozen=True)
class Region:
    """A text and its region: box (cx, cy, w, h) as shares of the view, patch mask [p], or the whole image."""

    text: str
    box: tuple[float, float, float, float]
    patches: Tensor
    is_image: bool


class RegionError(Exception):
    """A record's boxes do not fit its image; the message says which."""


class MLMRegions:
    """Reader of views of images, texts of their regions with some words masked, patch masks and boxes."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageConfig, MaskedConfig):
        """Options of images, of masked texts, and of drawing regions."""

        careful_flip: bool = False  # do not mirror where a text says left or right
        regions: RegionSampling = field(default_factory=RegionSampling)

    def __init__(self, config: Config, shape: ImageShape, tokenizer: Tokenizer):
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

        image [g, 3, H, W], idx_to_group_img [n], the text fields [n, ...], image_atts [n, p] int64, target_bbox [n, 4]
        float32, is_image [n] int64.
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
            "image_atts": torch.stack([region.patches for region in regions]),
            "target_bbox": torch.tensor([region.box for region in regions]),
            "is_image": torch.tensor([int(region.is_image) for region in regions]),
        }


def says_side(record: dict[str, Any]) -> bool:
    """Whether any text of the record says left or right (as substrings, like the published guard)."""
    texts = str([element["caption"] for element in record["elems"]]) + str(record.get("caption", ""))
    return "left" in texts or "right" in texts


def sample_view(
    image: Image.Image,
    record: dict[str, Any],
    image_size: int,
    patch_size: int,
    flip_probability: float,
    sampling: RegionSampling,
    rng: random.Random,
) -> tuple[Image.Image, list[Region]]:
    """A square view of `image_size` pixels and the regions in it.

    record: {"elems": [{"caption", "bb": [x, y, w, h], "attributes"?}], "caption"?} in pixels of `image`. An outer
    caption is a text of the whole view and uses up one of `sampling.most`. Raises RegionError for impossible boxes.
    """
    elements = record["elems"]
    x0, y0, x1, y1 = _crop_around(rng.choice(elements), image.size, rng)
    flipped = rng.random() < flip_probability
    view = image.crop((x0, y0, x1, y1))
    if flipped:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    view = view.resize((image_size, image_size), Image.Resampling.BICUBIC)
    grid = image_size // patch_size
    regions = []
    if record.get("caption"):
        whole = torch.ones(1 + grid * grid, dtype=torch.long)
        regions.append(Region(_one_of(record["caption"], rng), (0.5, 0.5, 1.0, 1.0), whole, True))
    for element in rng.sample(elements, len(elements)):
        if len(regions) >= sampling.most:
            break
        x, y, w, h = element["bb"]
        left, top = max(x, x0), max(y, y0)
        right, bottom = min(x + w, x1), min(y + h, y1)
        if right <= left or bottom <= top or (right - left) * (bottom - top) <= sampling.visible * w * h:
            continue
        width, height = right - left, bottom - top
        left, top = left - x0, top - y0
        if flipped:
            left = (x1 - x0) - left - width
        scale_x, scale_y = image_size / (x1 - x0), image_size / (y1 - y0)
        box = (left * scale_x, top * scale_y, width * scale_x, height * scale_y)
        text = _one_of(element["caption"], rng)
        if element.get("attributes"):
            text = f"{_one_of(element['attributes'], rng)} {text}"
        regions.append(Region(text, _centred(box, image_size), patch_mask(box, grid, patch_size), False))
    return view, regions


def patch_mask(box: tuple[float, float, float, float], grid: int, patch_size: int) -> Tensor:
    """box (x, y, w, h) in pixels of the view -> [1 + grid^2] int64: 1 for CLS and every patch the box touches."""
    x, y, w, h = box
    left, right = _cells(x, x + w, grid, patch_size)
    top, bottom = _cells(y, y + h, grid, patch_size)
    cells = torch.zeros(grid, grid, dtype=torch.long)
    cells[top:bottom, left:right] = 1
    return torch.cat([torch.ones(1, dtype=torch.long), cells.flatten()])


def _cells(start: float, end: float, grid: int, patch_size: int) -> tuple[int, int]:
    """First and last (exclusive) cell of a span, clipped to the grid, at least one cell."""
    first = min(max(math.floor(start / patch_size), 0), grid - 1)
    last = min(max(math.ceil(end / patch_size), first + 1), grid)
    return first, last


def _crop_around(element: dict[str, Any], size: tuple[int, int], rng: random.Random) -> tuple[int, int, int, int]:
    """A random crop that holds the element's whole box."""
    width, height = size
    x, y, w, h = (int(v) for v in element["bb"])
    if not (x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height):
        raise RegionError(f"box {element['bb']} does not fit its image of {width}x{height} pixels")
    return rng.randint(0, x), rng.randint(0, y), rng.randint(x + w, width), rng.randint(y + h, height)


def _centred(box: tuple[float, float, float, float], image_size: int) -> tuple[float, float, float, float]:
    x, y, w, h = box
    return ((x + w / 2) / image_size, (y + h / 2) / image_size, w / image_size, h / image_size)


def _one_of(text: str | list[str], rng: random.Random) -> str:
    return rng.choice(text) if isinstance(text, list) else text
