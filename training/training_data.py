"""The training split as numbered batches, and its epochs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from console.errors import InputError
from console.words import counted
from data.batches import Loaded, Side, load
from data.readers import Batch, make_reader
from training.passes import epochs_notice
from training.replaced import Replaced, missing_images
from training.run import Run


class TrainingData:
    """Batches of one reader, or of several that alternate by optimizer step.

    epochs, epoch_steps: of the run, or of one of the stages that `split` returns.
    """

    def __init__(self, run: Run, model: nn.Module, tokenizer: Any):
        config = run.config
        sides = []
        for name, reader_config in config.sides().items():
            reader = make_reader(reader_config, model.image_shape, tokenizer)
            reader.source = config.training_part(reader.source)
            if (there := len(reader.source)) < config.batch_size:
                raise InputError(
                    f"a batch of {config.batch_size} needs more than the {counted(there, 'sample')}: lower batch_size"
                )
            sides.append(Side(name, reader, config.batch_size, run.seed, whole=True))
        self._run, self.replaced, self._missing = run, Replaced(), missing_images(sides[0].reader.source)
        self.accumulate = config.accumulation(run.world)
        self._together = run.world * self.accumulate  # batches an optimizer step
        self._turns = InTurn(sides, self._together)
        whole = math.ceil(sides[0].batches / self._together) * len(sides)
        self.epochs, self.epoch_steps = config.epochs, min(whole, config.short_epoch or whole)
        self._from = 0  # number of steps in the earlier stage
        if run.args.debug:
            self.epochs, self.epoch_steps = 1, 2

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        return self.epochs * self.epoch_steps

    @property
    def notices(self) -> list[str]:
        """Notices before training: missing images, samples that do not fill a batch."""
        sides = self._turns.sides
        return [self._missing, epochs_notice(sides[0], self.epoch_steps // len(sides), self._together)]

    def split(self, share: float) -> tuple[TrainingData, TrainingData]:
        """Two stages, the first a share of all epochs, rounded down, or of the steps of one epoch; neither is empty."""
        first, rest = copy.copy(self), copy.copy(self)
        if self.epochs > 1:
            first.epochs = min(max(1, int(share * self.epochs + 1e-9)), self.epochs - 1)
            rest.epochs = self.epochs - first.epochs
        else:
            if self.steps < 2:
                raise InputError("one step cannot be split into a search and training: train for longer")
            first.epoch_steps = min(max(1, round(share * self.steps)), self.steps - 1)
            rest.epoch_steps = self.steps - first.epoch_steps
        rest._from = self._from + first.steps
        return first, rest

    def micro_batches(self, first: int) -> Iterator[Batch]:
        """This process's batches from its number `first` on."""
        world, together = self._run.world, self._together
        start, end = self._from * together + first * world, (self._from + self.steps) * together
        for item in load(self._turns, range(start + self._run.fabric.global_rank, end, world), self._run.workers):
            self.replaced.note(item.failed)
            yield item.batch


class InTurn(Dataset[Loaded]):
    """Batches of several sides, `together` of one and then as many of the next."""

    def __init__(self, sides: list[Side], together: int):
        self.sides, self._together = sides, together

    def __getitem__(self, number: int) -> Loaded:
        step, within = divmod(number, self._together)
        turn, side = divmod(step, len(self.sides))
        return self.sides[side][turn * self._together + within]
