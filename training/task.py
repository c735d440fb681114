"""What a finetuning script supplies: its configuration, and its task (data, losses, evaluation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from configs.limits import at_least
from configs.precisions import known_precision
from console.errors import InputError
from console.words import counted
from data.readers import Batch, ReaderConfig
from data.sources import Source
from evaluation.contact_sheet import Part
from evaluation.items import Groups
from sparsity.progressive_config import ProgressiveConfig
from training.epoch_weights import Metrics
from training.evaluating import Evaluation
from training.optimizer import Recipe


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """How to train: the part of a configuration that all tasks share."""

    reads: ClassVar[str | None] = None  # reader whose batches the task's losses take; None: any
    prompted: ClassVar[bool] = False  # whether a visual prompt may be trained with the model
    start_eval: ClassVar[int] = 0  # first epoch that is evaluated, from 0

    epochs: int  # passes over the training data
    batch_size: int  # samples per process and forward pass
    recipe: Recipe  # optimizer and schedule
    train: ReaderConfig  # reader of the training data
    effective_batch: int | None = None  # samples per optimizer step; None: one forward pass of all processes
    seed: int = 42  # of data order, augmentation and dropout
    precision: int | str = "32-true"  # 16 is a number to YAML
    model: dict[str, Any] = field(default_factory=dict)  # overrides of the model's configuration
    snapshot_steps: int | None = None  # also save a snapshot every so many steps
    short_epoch: int | None = None  # largest number of steps per epoch, for a quick trial
    samples: int | None = None  # largest number of samples per evaluation
    progressive: ProgressiveConfig | None = None  # prune while training
    skip_val: bool = False  # no evaluation after epochs; the last epoch counts

    def __post_init__(self) -> None:
        at_least(self, 1, "epochs", "batch_size", "effective_batch", "snapshot_steps", "short_epoch", "samples")
        at_least(self, 0, "seed")
        known_precision(str(self.precision))
        if self.reads is not None and self.train.reader != self.reads:
            raise InputError(f"train: the reader of this task is '{self.reads}', not '{self.train.reader}'")

    def sides(self) -> dict[str, ReaderConfig]:
        """Name -> reader of training data; several alternate, an optimizer step each."""
        return {"train": self.train}

    def training_part(self, source: Source) -> Source:
        """The part of the training data that is trained on: all, unless a task holds some out."""
        return source

    def accumulation(self, processes: int) -> int:
        """Forward passes a process and step; InputError when the effective batch cannot be made of them."""
        wanted, together = self.effective_batch or self.batch_size * processes, self.batch_size * processes
        if wanted % together:
            raise InputError(
                f"an effective batch of {wanted} cannot be made of {counted(processes, 'process')} with "
                f"{counted(self.batch_size, 'sample')} each: change batch_size, effective_batch or --devices so that "
                "it divides evenly"
            )
        return wanted // together


def check_positions(model: nn.Module, asked: dict[str, int]) -> None:
    """InputError, before the run, for texts longer than the model's position table.

    asked: key of the configuration -> tokens.
    """
    most = model.positions
    for key, tokens in asked.items():
        if tokens > most:
            raise InputError(f"{key} is {tokens}, but the model has {most} positions: lower it")


class Task:
    """What a script supplies: facts as class attributes, its data opened by `__init__`, losses, evaluation."""

    name: ClassVar[str]
    words: ClassVar[str]  # its name in tables
    main: ClassVar[tuple[str, ...]] = ()  # patterns of its main metric, the first match counts; none: no table
    metric_words: ClassVar[Mapping[str, str]] = {}  # metric -> its name in tables; others keep their names
    Config: ClassVar[type[Finetuning]]
    decides: str | None = None  # metric of `val` whose highest value selects the tested epoch; None: the last epoch
    rehearses: bool = False  # whether `rehearse` must see all micro-batches of a step before the first backward pass
    notices: Sequence[str] = ()  # printed before training
    validates: bool = True  # whether there is a split `val`; else the test data is evaluated after each epoch
    split: str = "test"  # of the last evaluation, which `items` and `samples` are about
    extra_modules: Mapping[str, nn.Module] = {}  # trained with the model, but not part of its weights: prompts
    tells_search: bool = False  # whether the test split is also evaluated between a search and training
    script: ClassVar[str | None] = None  # the script that runs it, without .py; None: the task's name

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Named losses of a training batch. progress: epochs done, a float."""
        raise NotImplementedError

    def rehearse(self, model: nn.Module, batch: Batch) -> None:
        """Process a micro-batch without gradients, for losses that compare all pairs of an optimizer step."""

    def rates(self, search: float | None = None) -> dict[str, float]:
        """Substrings of parameter names -> learning rates. search: the rate of scores during a search, else None."""
        return {}

    def begin(self, model: nn.Module, look: Evaluation) -> None:
        """Training starts or resumes; the model is on its device."""

    def after_backward(self) -> None:
        """All gradients of a step are computed, and not yet clipped."""

    def end_epoch(self, model: nn.Module, look: Evaluation) -> None:
        """An epoch is over."""

    def keep(self, folder: Path, model: nn.Module) -> None:
        """Write files that belong to the weights, such as a prompt; on the first process."""

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""

    def evaluate(self, model: nn.Module, look: Evaluation) -> Metrics:
        """Metrics on a split, equal on every process; {} when there is nothing to evaluate."""
        raise NotImplementedError

    def items(self) -> Groups:
        """The scores of single items of the last evaluation (evaluation/items.py); called on the first process."""
        return {}

    def samples(self) -> list[Part]:
        """Some test samples with the model's predictions (training/samples.py); called on the first process."""
        return []


class Objective(nn.Module):
    """The module that the loop trains: the model with the task's losses."""

    def __init__(self, model: nn.Module, task: Task, epoch: int):
        super().__init__()
        self.model = model
        self.extra_modules = nn.ModuleDict(task.extra_modules)
        self.task, self._epoch = task, epoch
        self.step = 0

    def forward(self, batch: Batch, rehearsal: bool = False) -> dict[str, torch.Tensor]:
        """Named losses; none in a rehearsal, in which the task collects what its losses need from all batches."""
        if rehearsal:
            self.task.rehearse(self.model, batch)
            return {}
        return self.task.losses(self.model, batch, self.step / self._epoch)
