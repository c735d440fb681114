"""Image transforms of training and evaluation, from PIL images to normalised tensors [3, H, W] float32."""

from __future__ import annotations

from dataclasses import dataclass, field

from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from data.randaugment import ALL_OPS, COLOUR_OPS, RandAugment
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


def to_normalised(shape: ImageShape) -> T.Compose:
    """PIL image -> tensor [3, H, W]; CLIP's mean and deviation unless the model has its own (DINO has not)."""
    return T.Compose([T.ToTensor(), T.Normalize(shape.mean or CLIP_MEAN, shape.std or CLIP_STD)])


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
