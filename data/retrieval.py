"""Image-text retrieval: pairs to train with, and a gallery of images and all their captions to evaluate on.

Both are in the COCO Karpathy format.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from console.errors import InputError
from data.evaluation_batches import EvaluationData
from data.pairs import PlainPairs
from data.readers import Batch, Sample
from data.records import is_caption
from data.sources import Files, by_image
from data.text import pre_caption
from data.tokenizer import Tokenizer
from data.transforms import evaluation_transform
from models.base import ImageShape


class RetrievalPairs(PlainPairs):
    """Reader of records {"image", "image_id", "caption"}: pairs with the number of their image.

    Pairs of the same `idx` are no negatives of one another: `idx` is the rank of the first appearance of `image_id`.
    """

    def __init__(self, config: PlainPairs.Config, shape: ImageShape, tokenizer: Tokenizer):
        super().__init__(config, shape, tokenizer)
        ranks: dict[int | str, int] = {}
        self._idx = [ranks.setdefault(self._image_id(i), len(ranks)) for i in range(len(self.source))]

    def sample(self, index: int, rng: random.Random) -> Sample:
        """Image [3, H, W], token ids (at most `max_tokens`), and the number of the image."""
        return *super().sample(index, rng), self._idx[index]

    def collate(self, samples: list[Sample], size: int, rng: random.Random) -> Batch:
        """image [b, 3, H, W]; text_ids, text_atts [b, t], t the longest; idx [b] int64."""
        images, texts, numbers = zip(*samples, strict=True)
        ids, atts = self._tokenizer.pad_batch(texts)
        return {"image": torch.stack(images), "text_ids": ids, "text_atts": atts, "idx": torch.tensor(numbers)}

    def _image_id(self, index: int) -> int | str:
        image_id = (self.source.record(index) or {}).get("image_id")
        if not isinstance(image_id, int | str):
            raise InputError(
                f"{self.source.name(index)}: its record has no usable 'image_id' (a number or a text), by which "
                "retrieval knows which captions share an image: add it"
            )
        return image_id


class Gallery(EvaluationData):
    """Images [3, H, W] by number; `texts` all captions; `image_of_text[j]` and `texts_of_image[i]` pair them.

    files: one annotation file of records {"image", "caption": str or list}. Records of one image, as the training
    layout has them with a caption each, are one image of the gallery with all their captions; images are in the order
    in which they first appear, and so are the captions of each.
    """

    def __init__(self, files: Files, shape: ImageShape, max_words: int, limit: int | None = None):
        """limit: the first so many images only."""
        files = files.resolved()
        path, found = by_image(files, {"caption": is_caption})
        super().__init__(list(found)[:limit], evaluation_transform(shape), files.ground)
        self.texts: list[str] = []
        self.image_of_text: list[int] = []
        self.texts_of_image: list[list[int]] = []
        for i, image in enumerate(self.images):
            said = [record["caption"] for record in found[image]]
            captions = [text for of_one in said for text in ([of_one] if isinstance(of_one, str) else of_one)]
            self.texts_of_image.append(list(range(len(self.texts), len(self.texts) + len(captions))))
            self.image_of_text += [i] * len(captions)
            try:
                self.texts += [pre_caption(caption, max_words) for caption in captions]
            except ValueError as error:
                raise InputError(
                    f"{path}: a caption of {image} has no word: remove it, since each has its place in the recalls"
                ) from error

    def __getitem__(self, i: int) -> Tensor:
        return self.picture(i)

    def collate(self, images: list[Tensor]) -> Batch:
        """`image` [b, 3, H, W]."""
        return {"image": torch.stack(images)}
