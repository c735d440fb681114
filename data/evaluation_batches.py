"""Evaluation batches: every sample once, in order, for any number of processes; none padded, repeated or left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch.utils.data import DataLoader

from console.errors import InputError
from console.words import counted
from data.images import ImageError, read_image
from data.loading import plainly
from data.readers import Batch


class EvaluationData(Protocol):
    """Samples by number, and how they become a batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Any: ...

    def file(self, i: int) -> str | None:
        """The image file of sample i, None where it is none of its own."""

    def collate(self, samples: list[Any]) -> Batch:
        """Samples to tensors."""


def evaluation_batches(
    data: EvaluationData, batch_size: int, rank: int = 0, size: int = 1, num_workers: int = 0
) -> Iterator[Batch]:
    """The batches of process `rank` of `size`: of all batches, in order, each size-th from number `rank` on.

    A batch holds the same samples whatever the number of processes; the last one may be smaller.
    """
    if batch_size < 1:
        raise InputError(f"the evaluation batch size must be at least 1, not {batch_size}")
    first = range(rank * batch_size, len(data), size * batch_size)
    wanted = [list(range(start, min(start + batch_size, len(data)))) for start in first]
    # A generator of its own: the loader would otherwise draw from the global one.
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(
        data, batch_sampler=wanted, num_workers=num_workers, collate_fn=data.collate, generator=generator
    )
    return plainly(loader)


def check_files(data: EvaluationData) -> None:
    """InputError that counts the missing image files: an evaluation needs them all, so look before the work starts."""
    files = [file for file in map(data.file, range(len(data))) if file is not None]
    missing = [file for file in dict.fromkeys(files) if not Path(file).is_file()]
    if missing:
        raise InputError(
            f"{counted(len(missing), 'evaluation image', 'is', of=len(files))} missing (first: {missing[0]}), and "
            "all of them are needed: mend the image folder, or evaluate on fewer"
        )


def needed_image(path: str, ground: str = "") -> Image.Image:
    """An image as RGB; InputError when it is missing or broken, because no other may take its place."""
    try:
        return read_image(path, ground=ground)
    except ImageError as error:
        raise unreadable(error) from error


def unreadable(error: ImageError) -> InputError:
    """What to say of an image that an evaluation cannot do without."""
    return InputError(f"an evaluation needs all its images, but one cannot be read: {error}; fetch it again")
