"""Evaluation batches: every sample once, in order, for any number of processes, without padding or repetition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from console.errors import InputError
from console.words import counted
from data.batches import loader
from data.images import ImageError, image_files, read_image
from data.readers import Batch

KEPT = 256 << 20
"""Most bytes of inputs for which an evaluation keeps all, so that they are decoded once for many masks or epochs."""


class EvaluationData(Dataset[Any]):
    """Samples by number, `__getitem__`, and how they become a batch, `collate`."""

    def __init__(self, images: Sequence[Any], transform: Callable[[Image.Image], Tensor], ground: str = ""):
        """images: the image file of each sample. ground: the colour under transparent pixels."""
        self.images, self.transform, self.ground = images, transform, ground
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.images)

    def file(self, i: int) -> str | tuple[str, ...] | None:
        """The image file of sample i (both of a pair); None where it has no file of its own."""
        return self.images[i]

    def image(self, i: int) -> Image.Image:
        """The image of sample i as it is; ImageError when it cannot be read."""
        return read_image(self.images[i], ground=self.ground)

    def picture(self, i: int) -> Tensor:
        """The model's input for sample i, [3, H, W].

        InputError when it cannot be read, since evaluation samples are not replaced.
        """
        if i in self._kept:
            return self._kept[i]
        try:
            picture = self.transform(self.image(i))
        except ImageError as error:
            raise InputError(
                f"an evaluation needs all its images, but one cannot be read: {error}; fetch it again"
            ) from error
        if len(self) * picture.nbytes <= KEPT and get_worker_info() is None:  # a worker ends with its pass
            self._kept[i] = picture
        return picture

    def collate(self, samples: list[Any]) -> Batch:
        """Samples to tensors."""
        raise NotImplementedError


def shared_images(names: Sequence[Any], images: Sequence[Tensor]) -> Batch:
    """image [i, ...]: the images of b samples, each name once; image_of [b] int64: which of them is each sample's."""
    place = {name: number for number, name in enumerate(dict.fromkeys(names))}
    together = torch.stack([images[names.index(name)] for name in place])
    return {"image": together, "image_of": torch.tensor([place[name] for name in names])}


def evaluation_batches(
    data: EvaluationData, batch_size: int, rank: int = 0, size: int = 1, num_workers: int = 0
) -> Iterator[Batch]:
    """The batches of process `rank` of `size`: every size-th of all batches, in order, from number `rank` on.

    A batch holds the same samples whatever the number of processes; the last one may be smaller.
    """
    if batch_size < 1:
        raise InputError(f"the evaluation batch size must be at least 1, not {batch_size}")
    first = range(rank * batch_size, len(data), size * batch_size)
    wanted = [list(range(start, min(start + batch_size, len(data)))) for start in first]
    return loader(data, num_workers, batch_sampler=wanted, collate_fn=data.collate)


def check_files(data: EvaluationData) -> None:
    """InputError that counts the missing image files, before the evaluation starts."""
    files = [file for i in range(len(data)) for file in image_files(data.file(i))]
    missing = [file for file in dict.fromkeys(files) if not Path(file).is_file()]
    if missing:
        raise InputError(
            f"{counted(len(missing), 'evaluation image', 'is', of=len(files))} missing (first: {missing[0]}), and all "
            "of them are needed: fix the image folder, or evaluate on fewer"
        )
