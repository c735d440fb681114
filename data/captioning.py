"""Captioning data: pairs for training, images for evaluation (COCO, Karpathy's split), and the first stage.

Karpathy and Fei-Fei, CVPR 2015. The first stage continues pretraining as captioning, over whole images and regions.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from configs.limits import at_least
from console.errors import InputError
from data.evaluation_batches import EvaluationData
from data.pairs import PlainPairs
from data.readers import Batch, ImageConfig, Sample, WordConfig
from data.records import Id, Record, check_ids, check_record, is_box, is_id
from data.regions import RegionError
from data.sources import ByImage, Files, Pairs, by_image
from data.text import one_text
from data.tokenizer import Tokenizer
from data.transforms import evaluation_transform, training_transform
from models.base import ImageShape

COCO_NAME = re.compile(r"COCO_\w+_\d{12}")


class Captions:
    """Reader of training batches: images, and texts `[CLS] prompt caption [SEP]`.

    A sample is one caption, or up to `most_of_image` captions of one image, which is encoded once for all of them; the
    batch size counts images.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageConfig, WordConfig):
        """Options of images and of texts, the prompt, and how many captions share an image."""

        prompt: str = "a picture of "  # before every caption
        most_of_image: int = 1  # so many texts of one image, at most, are one sample

        def __post_init__(self) -> None:
            super().__post_init__()
            at_least(self, 1, "most_of_image")

    def __init__(self, config: Config, shape: ImageShape, tokenizer: Tokenizer):
        self._pairs = Pairs(config.files)
        self.source = ByImage(self._pairs, config.most_of_image)
        self._config, self._tokenizer = config, tokenizer
        self._prompt = config.prompt.strip()
        self.prompt_length = len(tokenizer.encode(self._prompt, False, None))  # with [CLS]
        if self.prompt_length + 2 > config.max_tokens:
            raise InputError(
                f"the prompt {config.prompt!r} leaves no room for a caption in max_tokens {config.max_tokens}: raise "
                "max_tokens or shorten the prompt"
            )
        self._transform = training_transform(shape, config.augmentation)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W] and the token ids of each text, at most `max_tokens` of them."""
        first, *others = self.source.known(index)
        image, caption = self._pairs.read(first)
        texts = []
        for one in [caption, *map(self._pairs.known, others)]:
            text = one_text(one, self.source.name(index), self._config.max_words, rng)
            text = f"{self._prompt} {text}" if self._prompt else text
            texts.append(self._tokenizer.encode(text, True, self._config.max_tokens))
        return self._transform(image), texts

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [i, 3, H, W]; text_ids, text_atts [b, t], t the longest; prompt_length [b] int64, `[CLS]` counted.

        Where an image may have several texts, image_of [b] int64, the number of each text's image.
        """
        images, texts = zip(*samples, strict=True)
        ids, atts = self._tokenizer.pad_batch([text for of_image in texts for text in of_image])
        length = torch.full((len(ids),), self.prompt_length)
        batch = {"image": torch.stack(images), "text_ids": ids, "text_atts": atts, "prompt_length": length}
        if self._config.most_of_image > 1:
            batch["image_of"] = torch.tensor([number for number, of_image in enumerate(texts) for _ in of_image])
        return batch


class FirstStageCaptions(PlainPairs):
    """Reader of the first stage: captions of several files, `[CLS] caption [SEP]` without a prompt.

    Of a record with boxes (`bb`, one for each caption) the image is cropped to the box of the caption that was drawn.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageConfig, WordConfig):
        """Options of images and of texts."""

    def __init__(self, config: Config, shape: ImageShape, tokenizer: Tokenizer):
        super().__init__(config, shape, tokenizer)
        for index in range(len(self.source)):
            _check_boxes(self.source, index)

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W] and token ids. RegionError for a box outside its image."""
        image, captions = self.source.read(index)
        box = (self.source.record(index) or {}).get("bb")
        if isinstance(captions, list):
            number = rng.randrange(len(captions))
            captions, box = captions[number], box and box[number]
        text = one_text(captions, self.source.name(index), self._config.max_words, rng)
        image = crop_to_box(image, box) if box else image
        return self._transform(image), self._tokenizer.encode(text, True, self._config.max_tokens)


class ImagesToCaption(EvaluationData):
    """Sample i is an image [3, H, W] and its id, `image_ids[i]`.

    files: one annotation file of records {"image", "image_id"?}; several records of one image, as the training layout
    has them, are one.
    """

    def __init__(self, files: Files, shape: ImageShape, limit: int | None = None):
        """limit: use the first `limit` images only."""
        files = files.resolved()
        path, found = by_image(files, {})
        super().__init__(list(found)[:limit], evaluation_transform(shape), files.ground)
        self.image_ids = image_ids([first for first, *_ in found.values()], path)[:limit]
        check_ids(self.image_ids, path)

    def __getitem__(self, i: int) -> tuple[Tensor, Id]:
        return self.picture(i), self.image_ids[i]

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        """image [b, 3, H, W]; image_id, a list of b ids."""
        images, ids = zip(*samples, strict=True)
        return {"image": torch.stack(images), "image_id": list(ids)}


def image_ids(records: list[Record], where: str) -> list[Id]:
    """Image ids, as in ground truth and results, from records {"image", "image_id"?}.

    COCO's names have COCO's number: `COCO_val2014_000000000042.jpg` is 42. Else the records' own `image_id` counts,
    which all must have if one has it. Without it names that all end in a number have that, `flickr30k/1000092795.jpg`
    1000092795; where one does not, as of OpenImages (NoCaps, TextCaps), the whole name without its ending is the id, a
    text: digits of some names say nothing where those of others are hexadecimal.
    """
    stems = [PurePosixPath(record["image"]).stem for record in records]
    if not all(map(COCO_NAME.fullmatch, stems)) and any("image_id" in record for record in records):
        for record in records:
            check_record(record, f"{where}: {record['image']}", {"image_id": is_id})
        return [record["image_id"] for record in records]
    ends = [stem.rpartition("_")[2] for stem in stems]
    return list(map(int, ends)) if all(map(str.isdecimal, ends)) else stems


def crop_to_box(image: Image.Image, box: list[float]) -> Image.Image:
    """The part of an image inside the box [x, y, w, h], in whole pixels; RegionError when it is empty."""
    x, y, w, h = box
    left, top = max(0, math.floor(x)), max(0, math.floor(y))
    right, bottom = min(image.width, math.ceil(x + w)), min(image.height, math.ceil(y + h))
    if min(w, h) <= 0 or right <= left or bottom <= top:
        raise RegionError(f"box {box} does not lie in its image of {image.width}x{image.height} pixels")
    return image.crop((left, top, right, bottom))


def _check_boxes(source: Pairs, index: int) -> None:
    record = source.record(index)
    if record is None or record.get("bb") is None:
        return
    captions, boxes = record["caption"], record["bb"]
    if isinstance(captions, list):
        fine = isinstance(boxes, list) and len(boxes) == len(captions) and all(map(is_box, boxes))
    else:
        fine = is_box(boxes)
    if not fine:
        raise InputError(
            f"{source.name(index)}: its record must have one box [x, y, w, h] in 'bb' for each caption: fix the record"
        )
