"""Image-text retrieval data in the COCO Karpathy format: a gallery of images and all their captions."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import Dataset

from console.errors import InputError
from data.evaluation_batches import needed_image
from data.records import check_fields, is_caption, is_text, join_root, read_json_list
from data.sources import Files
from data.text import pre_caption
from data.transforms import evaluation_transform
from models.base import Batch, ImageShape


class Gallery(Dataset[Tensor]):
    """Images [3, H, W] by number; `texts` all captions; `image_of_text[j]` and `texts_of_image[i]` pair them.

    files: one annotation file of records {"image", "caption": str or list}, image paths below `image_root`. Records of
    one image, as the training layout has them with a caption each, are one image of the gallery with all their
    captions; images are in the order in which they first appear, and so are the captions of each.
    """

    def __init__(self, files: Files, shape: ImageShape, max_words: int, limit: int | None = None):
        """limit: the first so many images only."""
        files = files.resolved()
        path = files.path(files.annotations[0])
        records = read_json_list(path)
        check_fields(records, path, {"image": is_text, "caption": is_caption})
        root = files.path(next(iter(files.image_roots.values()))) if files.image_roots else files.root
        captions_of: dict[str, list[str]] = {}
        for record in records:
            said = record["caption"]
            captions_of.setdefault(join_root(root, record["image"]), []).extend(
                [said] if isinstance(said, str) else said
            )
        self.texts: list[str] = []
        self.image_of_text: list[int] = []
        self.texts_of_image: list[list[int]] = []
        self.images = list(islice(captions_of, limit))
        for i, image in enumerate(self.images):
            captions = captions_of[image]
            self.texts_of_image.append(list(range(len(self.texts), len(self.texts) + len(captions))))
            self.image_of_text += [i] * len(captions)
            try:
                self.texts += [pre_caption(caption, max_words) for caption in captions]
            except ValueError as error:
                raise InputError(
                    f"{path}: a caption of {image} has no word: remove it, since each has its place in the recalls"
                ) from error
        self._transform, self._ground = evaluation_transform(shape), files.ground

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self._transform(needed_image(self.images[i], self._ground))

    def file(self, i: int) -> str:
        """The file of image i."""
        return self.images[i]

    def collate(self, images: list[Tensor]) -> Batch:
        """`image` [b, 3, H, W]."""
        return {"image": torch.stack(images)}
