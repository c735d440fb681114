"""Batches as a pure function of the seed and their number.

Batch t of a side (general, region, ...) does not depend on workers, processes, or on what was loaded before; so a
run can be spread, stopped and resumed without changing a bit.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from console.errors import InputError
from data.images import ImageError
from data.randomness import permutation, seeded
from data.readers import Batch, Reader
from data.regions import RegionError
from data.text import TextError

Unit = tuple[int, str]
"""Number of a batch and its side."""

RETRIES = 10  # samples tried in place of an unreadable one


@dataclass
class Loaded:
    """A batch, and which of its samples could not be read."""

    batch: Batch
    used: list[int]
    failed: list[str]


class Side(Dataset[Loaded]):
    """All batches of one reader: item t is batch t, shuffled anew by the seed in each epoch."""

    def __init__(self, name: str, reader: Reader, batch_size: int, seed: int, whole: bool = False):
        """whole: drop a last batch that is not full, since processes that compare features need equal sizes."""
        self.name, self.reader, self.batch_size, self.seed = name, reader, batch_size, seed
        n = len(reader.source)
        last = n % batch_size
        # A last batch of a single sample has no negatives: leave it out unless it is the only one.
        self.batches = n // batch_size + int(last > 1 or (last == 1 and n == 1))
        if whole and n >= batch_size:
            self.batches = n // batch_size
        self._order: tuple[int, list[int]] = (-1, [])

    def planned(self, t: int) -> list[int]:
        """Indices of the records of batch t."""
        epoch, position = divmod(t, self.batches)
        if self._order[0] != epoch:
            self._order = (epoch, permutation(len(self.reader.source), self.seed, self.name, "order", epoch))
        return self._order[1][position * self.batch_size : (position + 1) * self.batch_size]

    def __getitem__(self, t: int) -> Loaded:
        samples, used, failed = [], [], []
        for position, index in enumerate(self.planned(t)):
            with seeded(self.seed, self.name, "sample", t, position) as rng:
                sample, index = self._read(index, rng, failed)
            samples.append(sample)
            used.append(index)
        with seeded(self.seed, self.name, "batch", t) as rng:
            return Loaded(self.reader.collate(samples, self.batch_size, rng), used, failed)

    def _read(self, index: int, rng: random.Random, failed: list[str]) -> tuple[Any, int]:
        """The sample, or another one if it cannot be read."""
        for _ in range(RETRIES):
            try:
                return self.reader.sample(index, rng), index
            except (ImageError, RegionError, TextError) as error:
                name = self.reader.source.name(index)
                failed.append(f"{name} ({error})" if isinstance(error, RegionError) else str(error))
                index = rng.randrange(len(self.reader.source))
        raise InputError(
            f"{RETRIES} samples in a row cannot be read (last: {failed[-1]}): check images and annotations"
        )


class Sides(Dataset[Loaded]):
    """Several sides stepped together; item (t, side) is batch t of that side."""

    def __init__(self, readers: dict[str, Reader], batch_size: int, seed: int, whole: bool = False):
        """whole: as of `Side`."""
        if batch_size < 1:
            raise InputError(f"the batch size must be at least 1, not {batch_size}")
        self.sides = {name: Side(name, reader, batch_size, seed, whole) for name, reader in readers.items()}
        self.ends = min(side.batches for side in self.sides.values())  # the shorter side ends an epoch

    def __getitem__(self, unit: Unit) -> Loaded:
        t, side = unit
        return self.sides[side][t]

    def load(self, wanted: Sequence[Unit], num_workers: int = 0) -> Iterator[tuple[int, str, Loaded]]:
        """The wanted batches in order, loaded ahead by `num_workers` processes."""
        for (t, side), loaded in zip(wanted, load(self, wanted, num_workers), strict=True):
            yield t, side, loaded


def load(batches: Dataset[Loaded], wanted: Sequence[Any], num_workers: int = 0) -> Iterator[Loaded]:
    """The wanted items of a `Side` or `Sides` in order, loaded ahead by `num_workers` processes."""
    return loader(batches, num_workers, batch_size=None, sampler=wanted)


def loader(data: Dataset[Any], num_workers: int, **how: Any) -> Iterator[Any]:
    """The batches of torch's DataLoader.

    An InputError of a worker arrives with the worker's traceback in its text: it is raised again without that.
    """
    # A separate generator: the loader would otherwise draw from the global one.
    generator = torch.Generator().manual_seed(0)
    try:
        yield from DataLoader(data, num_workers=num_workers, generator=generator, **how)
    except InputError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None
