"""Readers for the stages that pretrain the minis (configs/<model>/pretrain.yaml).

Dense labels and texts without images replace the separately pretrained towers from which real models start. Opposites
are hard negatives: few captions of a batch differ in the direction alone, so that without them matching would not learn
directions (Yuksekgonul et al., "When and Why Vision-Language Models Behave Like Bags-of-Words", ICLR 2023).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torchvision import transforms as T

from configs.limits import at_least, probabilities, shares_of_area
from console.errors import InputError
from data.labelled import LabelledImages
from data.masking import masked_fields, masked_text
from data.miniworld import dense_labels, paint, scene_for
from data.pairs import PlainPairs, Texts
from data.readers import Batch, MaskedConfig, ReaderConfig, Sample
from data.sources import Files, Source
from data.text import one_text
from data.tokenizer import Tokenizer
from data.transforms import BICUBIC, to_normalised
from models.base import ImageShape

LABELS = {"shape": 8, "colour": 8, "texture": 4, "size": 2}
"""Kinds of patch labels and their number of classes, in the order of `dense_labels`' last axis."""


class _Endless(Source):
    """An endless source of scenes, drawn on access."""

    def __len__(self) -> int:
        return 1 << 20

    def name(self, index: int) -> str:
        """How to call scene `index`."""
        return f"scene {index}"

    def file(self, index: int) -> None:
        """Scenes have no files."""


class DenseScenes:
    """Side `scenes` of the vision stage: pictures painted on the fly, with a label for every patch."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ReaderConfig):
        """No options."""

    def __init__(self, config: Config, shape: ImageShape, tokenizer: Tokenizer):
        self.source = _Endless()
        self._patch = shape.patch_size
        self._transform = to_normalised(shape)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, 64, 64] and labels [p - 1, 4]."""
        scene = scene_for("dense", index)
        labels = torch.from_numpy(dense_labels(scene, self._patch)).long()
        return self._transform(Image.fromarray(paint(scene))), labels

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [b, 3, 64, 64], labels [b, p - 1, 4] int64."""
        images, labels = zip(*samples, strict=True)
        return {"image": torch.stack(images), "labels": torch.stack(labels)}


class MaskedTexts(Texts):
    """Side `texts` of the text stage: captions of pairs, words masked, images not opened."""

    Config = MaskedConfig

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Token ids, masked ids, masked positions, original ids there."""
        text = one_text(self.source.known(index), self.source.name(index), self._config.max_words, rng)
        return masked_text(text, self._config, self._tokenizer, rng)

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """text_ids, text_atts, text_ids_masked [b, L], masked_pos, masked_ids [b, m]."""
        return masked_fields(list(zip(*samples, strict=True)), self._config, self._tokenizer)


OPPOSITES = {"left": "right", "above": "below", "over": "under", "top": "bottom", "higher": "lower"}
OPPOSITES |= {new: old for old, new in OPPOSITES.items()} | {"beneath": "above"}


def opposite(text: str) -> str | None:
    """The text with its directions reversed, `left of` for `right of`; None where it has none."""
    turned = " ".join(OPPOSITES.get(word, word) for word in text.split())
    return None if turned == text else turned


class OpposedPairs(PlainPairs):
    """`pairs`, with the opposite of each caption that has a direction, true of the mirrored or flipped picture."""

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W], token ids, and those of the opposite or None."""
        image, caption = self.source.read(index)
        text = one_text(caption, self.source.name(index), self._config.max_words, rng)
        ids, turned = (
            None if said is None else self._tokenizer.encode(said, self._config.sep, self._config.max_tokens)
            for said in (text, opposite(text))
        )
        return self._transform(image), ids, turned

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """As of pairs; opposed_of [k] int64: the pairs with an opposite; opposed_ids, opposed_atts [k, t]."""
        batch = super().collate([sample[:2] for sample in samples], size, rng)
        of = [number for number, (_, _, turned) in enumerate(samples) if turned is not None]
        ids, atts = self._tokenizer.pad_batch([samples[number][2] for number in of], self._config.max_tokens)
        return batch | {"opposed_of": torch.tensor(of, dtype=torch.long), "opposed_ids": ids, "opposed_atts": atts}


@dataclass(frozen=True)
class Views:
    """Random crops of DINO's multi-crop, with its defaults (without blur and solarisation)."""

    large: list[float] = field(default_factory=lambda: [0.4, 1.0])  # range of a large crop's share of the area
    small: list[float] = field(default_factory=lambda: [0.05, 0.4])  # range of a small crop's share
    flip: float = 0.5  # probability of mirroring
    jitter: list[float] = field(default_factory=lambda: [0.4, 0.4, 0.2, 0.1])  # brightness, contrast, saturation, hue
    jitter_chance: float = 0.8  # probability of colour jitter
    grey: float = 0.2  # probability of converting to grey

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


class MultiCrops:
    """Side `crops`: views of labelled images, each augmented on its own, labels not used."""

    @dataclass(frozen=True, kw_only=True)
    class Config(ReaderConfig):
        """Class folders, and the random crops of their images."""

        files: Files  # class folders
        small_crops: int = 4  # views of an image, besides the two large ones
        views: Views | None = None  # None: DINO's defaults

        def __post_init__(self) -> None:
            at_least(self, 0, "small_crops")

    def __init__(self, config: Config, shape: ImageShape, tokenizer: Tokenizer | None):
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
