"""Statements about two images, true or false: NLVR2, in BLIP's annotation files and in the original ones.

Suhr et al., "A Corpus for Reasoning about Natural Language Grounded in Photographs", ACL 2019.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from configs.limits import at_least
from console.errors import InputError, nearest
from data.evaluation_batches import EvaluationData, shared_images
from data.images import read_image
from data.questions import says_left_or_right
from data.readers import Batch, ImageConfig, Sample, TextConfig
from data.records import Checks, Id, Record, check_fields, check_ids, is_text, read_json_records
from data.sources import ByImage, Files, Source
from data.text import TextError, pre_statement
from data.tokenizer import Tokenizer
from data.transforms import evaluation_transform, training_transform
from models.base import ImageShape

SWAPS = ("neutral", "published", "never")
LABELS = {"True": 1, "False": 0}
ORIGINAL = ("", "{split}", "images/train/{directory}", "train/{directory}")
"""Folders of the original images below their root: all in one, by split, as they were published."""


@dataclass(frozen=True)
class Statement:
    """images: the files, the left one first. identifier: `dev-850-0-3`, where the annotations have one."""

    images: tuple[str, str]
    sentence: str
    label: int
    identifier: Id | None


class ImagePairs(Source):
    """Statements of several files as one numbered list.

    A record is BLIP's, {"images": [two paths], "sentence", "label": "True" or "False", "identifier"?}, or an original
    one, {"identifier", "sentence", "label", "directory"?}, whose images are called by the identifier without its last
    part, `dev-850-0-img0.png` and `dev-850-0-img1.png`. Paths lie below the first image root.
    """

    def __init__(self, files: Files):
        super().__init__(files.ground)
        files = files.resolved()
        root = next(iter(files.image_roots), None)
        for path in map(files.path, files.annotations):
            self.paths.append(path)
            records = read_json_records(path)
            listed = ["images" in record for record in records]
            if any(listed) and not all(listed):
                raise InputError(f"{path}: record {listed.index(False)} has no field 'images', as others have")
            checks: Checks = {"images": _is_pair} if all(listed) else {"identifier": _is_identifier}
            check_fields(records, path, checks | {"sentence": is_text, "label": lambda value: str(value) in LABELS})
            below = "" if all(listed) else _folder(records[0], files, root, path)
            for record in records:
                images = record["images"] if all(listed) else _names(record, below)
                left, right = (files.image(image, root, path) for image in images)
                label = LABELS[str(record["label"])]
                self._images.append(Statement((left, right), record["sentence"], label, record.get("identifier")))
        if not self._images:
            raise InputError("no file of statements is given: name at least one in the configuration")

    def name(self, index: int) -> str:
        """Both paths."""
        return " and ".join(self.known(index).images)

    def file(self, index: int) -> tuple[str, str]:
        """Both files."""
        return self.known(index).images

    def known(self, index: int) -> Statement:
        """The statement with all that is known of it."""
        return self._images[index]

    def read(self, index: int) -> tuple[tuple[Image.Image, Image.Image], Statement]:
        """Left and right image, and the statement; ImageError when one cannot be read."""
        known = self.known(index)
        left, right = (read_image(file, ground=self.ground) for file in known.images)
        return (left, right), known


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_text, value))


def _is_identifier(value: Any) -> bool:
    return is_text(value) and len(value.split("-")) == 4


def _names(record: Record, folder: str) -> list[str]:
    """The images of an original record, in `folder`, which may name the record's own."""
    stem = record["identifier"].rpartition("-")[0]
    folder = folder.format(split=stem.partition("-")[0], directory=record.get("directory", ""))
    return [str(Path(folder) / f"{stem}-img{number}.png") for number in range(2)]


def _folder(record: Record, files: Files, root: str | None, path: str) -> str:
    """The folder of a file's original images, by where the first one is; the root where it is not found."""
    found = (f for f in ORIGINAL if Path(files.image(_names(record, f)[0], root, path)).is_file())
    return next(found, ORIGINAL[0])


def sentence_of(identifier: str) -> str:
    """`dev-850-2-3` (sentence 3 of set 850 on its pair 2) -> `dev-850-3`, which all pairs of the sentence share."""
    *before, _, number = identifier.split("-")
    return "-".join([*before, number])


class Statements:
    """Reader of training batches: two images, a statement, and whether it is true.

    A sample is one statement, or up to `most_of_pair` about one pair, which then goes through the tower once. Images
    vary each by itself. A pair changes sides with probability 1/2, and an image is mirrored with probability
    `augmentation.flip`; both are left out where a statement says left or right in any form.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(ImageConfig, TextConfig):
        """Options of images and of texts, and how pairs vary.

        With the swap `published`, every pair may change sides; the words left and right are then exchanged where one
        stands between blanks, and images are mirrored whatever is said. So `left-hand`, `left,` and a left inside one
        image become wrong.
        """

        max_tokens: int | None = None  # a statement is as long as its words
        swap: str = "neutral"  # when a pair may change sides: neutral (where no text names a side), never, published
        most_of_pair: int = 1  # largest number of statements about one pair in a sample; the batch size counts samples

        def __post_init__(self) -> None:
            super().__post_init__()
            at_least(self, 1, "most_of_pair")
            if self.swap not in SWAPS:
                near = nearest(self.swap, SWAPS)
                raise InputError(f"unknown swap '{self.swap}'{near}: choose one of {', '.join(SWAPS)}")

    def __init__(self, config: Config, shape: ImageShape, tokenizer: Tokenizer):
        self._pairs = ImagePairs(config.files)
        self.source = ByImage(self._pairs, config.most_of_pair)
        self._config, self._tokenizer = config, tokenizer
        self._varied = training_transform(shape, config.augmentation)
        self._upright = training_transform(shape, replace(config.augmentation, flip=0.0))

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Images [2, 3, H, W]; the token ids and the label of each of its statements."""
        config, name = self._config, self.source.name(index)
        numbers = self.source.known(index)
        pair, _ = self._pairs.read(numbers[0])
        known = [self._pairs.known(number) for number in numbers]
        sentences = [cleaned(one.sentence, config.max_words, name) for one in known]
        exchanged = rng.random() < 0.5
        sided = says_left_or_right([one.sentence for one in known])
        if exchanged and may_swap(config.swap, sided):
            pair = pair[::-1]
            sentences = list(map(exchange_sides, sentences)) if config.swap == "published" else sentences
        transform = self._upright if sided and config.swap != "published" else self._varied
        images = _both(transform, pair)
        texts = [self._tokenizer.encode(sentence, config.sep, config.max_tokens) for sentence in sentences]
        return images, list(zip(texts, (one.label for one in known), strict=True))

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [i, 2, 3, H, W], the left one first; text_ids, text_atts [b, t]; label [b] int64, 1 is true.

        Where a pair may have several statements, image_of [b] int64, the number of each statement's pair; else i is b.
        """
        images, said = zip(*samples, strict=True)
        texts, labels = zip(*(one for of_pair in said for one in of_pair), strict=True)
        batch = {"image": torch.stack(images), **_texts(texts, labels, self._tokenizer)}
        if self._config.most_of_pair > 1:
            batch["image_of"] = torch.tensor([number for number, of_pair in enumerate(said) for _ in of_pair])
        return batch


class StatementsToJudge(EvaluationData):
    """Sample i is its number, the images [2, 3, H, W], token ids and label. No pair changes sides.

    Statements about one pair that follow each other share it: it is read and seen once.
    """

    def __init__(
        self, files: Files, shape: ImageShape, tokenizer: Tokenizer, config: TextConfig, limit: int | None = None
    ):
        """config: the options of training texts, used here, too. limit: use the first `limit` statements only."""
        self.source = ImagePairs(files)
        self.statements = [self.source.known(i) for i in range(len(self.source))][:limit]
        transform = partial(_both, evaluation_transform(shape))
        super().__init__([one.images for one in self.statements], transform, files.ground)
        self._tokenizer, self._config = tokenizer, config
        given = [one.identifier for one in self.statements if one.identifier is not None]
        self.identified = len(given) == len(self.statements)
        if given and not self.identified:
            raise InputError(f"{', '.join(self.source.paths)}: some records have no identifier: give all or none")
        check_ids(given, ", ".join(self.source.paths))
        self._latest: tuple[tuple[str, str], Tensor] | None = None

    def image(self, i: int) -> tuple[Image.Image, Image.Image]:
        """Both images of sample i; ImageError when one cannot be read."""
        return self.source.read(i)[0]

    def __getitem__(self, i: int) -> tuple[int, Tensor, list[int], int]:
        one = self.statements[i]
        try:
            sentence = cleaned(one.sentence, self._config.max_words, self.source.name(i))
        except TextError as error:
            raise InputError(f"an evaluation needs all its statements, but one has no word: {error}") from error
        ids = self._tokenizer.encode(sentence, self._config.sep, self._config.max_tokens)
        if self._latest is None or self._latest[0] != one.images:
            self._latest = one.images, self.picture(i)
        return i, self._latest[1], ids, one.label

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        """The fields of `Statements.collate` with image_of, and number, a list of b numbers."""
        numbers, images, texts, labels = zip(*samples, strict=True)
        shared = shared_images([self.statements[number].images for number in numbers], images)
        return _texts(texts, labels, self._tokenizer) | shared | {"number": list(numbers)}


def _both(transform: Callable[[Image.Image], Tensor], pair: tuple[Image.Image, Image.Image]) -> Tensor:
    return torch.stack([transform(image) for image in pair])


def _texts(texts: Any, labels: Any, tokenizer: Tokenizer) -> Batch:
    ids, atts = tokenizer.pad_batch(texts)
    return {"text_ids": ids, "text_atts": atts, "label": torch.tensor(labels)}


def cleaned(sentence: str, max_words: int, name: str) -> str:
    """A statement as models read it; TextError when nothing is left of it."""
    try:
        return pre_statement(sentence, max_words)
    except ValueError as error:
        raise TextError(f"{name} (the statement {sentence!r} has no word)") from error


def may_swap(rule: str, sided: bool) -> bool:
    """Whether a pair may change sides. sided: whether the statement says left or right."""
    return rule == "published" or (rule == "neutral" and not sided)


def exchange_sides(sentence: str) -> str:
    """As published: the words left and right exchanged, where one stands between blanks."""
    other = {"left": "right", "right": "left"}
    return " ".join(other.get(word, word) for word in sentence.split(" "))
