"""Retrieval between two captions of each picture, in two languages or by two people, with a text encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.limits import at_least
from console.errors import InputError
from data.records import is_caption
from data.sources import Files, by_image
from data.text import pre_caption
from data.tokenizer import Tokenizer
from models.tasks import TextEmbedder


@dataclass(frozen=True)
class TextPairSettings:
    """Captions of the same images in two annotation files."""

    one: Files  # one annotation file (docs/data.md); images need not exist
    other: Files  # the other; images that only one of them has are left out
    max_words: int = 30  # words kept of a caption
    sep: bool = True  # whether [SEP] ends a text
    batch: int = 128  # texts per forward pass

    def __post_init__(self) -> None:
        at_least(self, 1, "max_words", "batch")


class TextPairs:
    """Pairs of captions, opened once for any number of models.

    left_out: number of images with a caption in one file only, or with a caption that another image also has.
    """

    def __init__(self, settings: TextPairSettings, tokenizer: Tokenizer):
        self._settings, self._tokenizer = settings, tokenizer
        sides = [_captions(files.resolved(), settings.max_words) for files in (settings.one, settings.other)]
        images = [image for image in sides[0] if image in sides[1]]
        found = dict[str, str]()
        for image in images:
            if sides[0][image] not in found and sides[1][image] not in found.values():
                found[sides[0][image]] = sides[1][image]
        if len(found) < 2:
            raise InputError(
                f"{settings.one.annotations[0]} and {settings.other.annotations[0]} have {len(found)} captions of the "
                "same images: give two files of the same images"
            )
        self.pairs = list(found.items())
        self.left_out = len({*sides[0], *sides[1]}) - len(self.pairs)

    @torch.no_grad()
    def right(self, model: TextEmbedder) -> Tensor:
        """For each pair [n]: the share of its two captions whose nearest caption in the other file is their partner."""
        one, other = (F.normalize(self._features(model, texts), dim=1) for texts in zip(*self.pairs, strict=True))
        similarity, own = one @ other.t(), torch.arange(len(one), device=one.device)
        return sum((similarity.argmax(dim=dim) == own).float() for dim in (0, 1)) / 2

    def _features(self, model: TextEmbedder, texts: tuple[str, ...]) -> Tensor:
        """Vectors [n, d] of the texts."""
        device, size = next(model.parameters()).device, self._settings.batch
        rows = [self._tokenizer.encode(text, self._settings.sep, model.positions) for text in texts]
        parts = (self._tokenizer.pad_batch(rows[i : i + size]) for i in range(0, len(rows), size))
        return torch.cat([model.embed_text(*(tensor.to(device) for tensor in part)).float() for part in parts])


def _captions(files: Files, max_words: int) -> dict[str, str]:
    """Image -> its first caption; InputError for one without a word."""
    path, found = by_image(files, {"caption": is_caption})
    said = {}
    for image, records in found.items():
        first = records[0]["caption"]
        try:
            said[image] = pre_caption(first if isinstance(first, str) else first[0], max_words)
        except ValueError as error:
            raise InputError(f"{path}: the caption of {image} has no word: remove it") from error
    return said
