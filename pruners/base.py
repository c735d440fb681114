"""The base classes of pruners: a criterion that scores weights, computed from calibration data where it needs any.

`calibrate` reads the data once; `masks` is then cheap for any sparsities. Iterative methods override `masks` and run
their rounds there. Each method owns its options (a dataclass).
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from calibration.layer_inputs import Choice
from calibration.preserve import moving_restored, restored
from calibration.processes import Group
from calibration.progress import Progress
from calibration.resume import Checkpoint, State, no_checkpoint
from calibration.statistics import InputNorms, Layers, Statistic
from calibration.stream import Batches, Unit, check_batch, device_of, lacks_field, stream, to_device
from console.errors import InputError
from console.interrupt import interrupt
from data.randomness import seeded
from models.base import Batch, Model
from models.layers import form_of, matrix
from pruners.streaming import gather_streamed
from pruners.tokens import TokenOptions
from sparsity.allocation import allocation_named
from sparsity.mask import Mask
from sparsity.scores import Scores
from sparsity.threads import in_threads
from sparsity.weighting import weighted

Advance = Callable[..., None]


def silent(steps: int = 1, note: str | None = None) -> None:
    """No progress bar."""


@dataclass(frozen=True)
class NoOptions:
    """A method without hyperparameters."""


@dataclass
class Work:
    """What a pruner needs besides the model: data, processes, checkpoint, progress.

    pairs: number of steps of the data, one batch of each side each (of a round, for iterative methods); None: all.
    """

    batches: Batches
    sides: tuple[str, ...]
    seed: int = 42
    pairs: int | None = None
    group: Group = dataclasses.field(default_factory=Group)
    checkpoint: Checkpoint = no_checkpoint
    advance: Advance = silent
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext


class Pruner(ABC):
    """A pruning method bound to a model."""

    allocation: ClassVar[str] = "global"
    uses_data: ClassVar[bool] = False
    draws: ClassVar[bool] = False  # uses the seed although it uses no data
    updates_weights: ClassVar[bool] = False  # updates the kept weights; the masks carry them
    uses_gradients: ClassVar[bool] = False
    uses_rounds: ClassVar[bool] = False  # each mask needs its own passes over the data
    resumes: ClassVar[bool] = True  # an interrupted run can resume
    takes_ids: ClassVar[bool] = True  # its scores can be weighted by layer (--ids)
    family: ClassVar[str] = ""  # methods of one family share a colour in pictures; empty: its own colour
    Options: ClassVar[type] = NoOptions

    def __init__(self, model: Model, work: Work, options: Any, allocation: str | None = None):
        self.model = model
        self.work = work
        self.options = options
        self.layers: Layers = model.prunable_layers()
        if not self.layers:
            raise InputError("the model has no prunable layer: nothing to prune")
        self.forms = {name: form_of(layer) for name, layer in self.layers.items()}
        self.modality = {name: model.modality_of(name) for name in self.layers}
        self.allocation_name = allocation or self.allocation
        self.allocate = allocation_named(self.allocation_name)
        self.scores_by_sparsity: dict[float, Scores] = {}  # for methods whose scores serve one sparsity only
        self.factors: Mapping[str, float] = {}  # on the scores of layers (--ids)
        self.importance: Mapping[str, float] = {}  # of layers, where the allocation ranks them
        self.unreached: list[str] = []  # layers that the data did not reach
        self.choice: Choice | None = None  # of the tokens that count, where blocks choose them

    def calibrate(self) -> None:  # noqa: B027 - methods without data inherit it
        """Read the data, if the method needs any."""

    @abstractmethod
    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """A mask for each sparsity, in (0, 1)."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape of the weight as a matrix, (o, i)."""
        return {name: form.matrix_shape for name, form in self.forms.items()}

    def matrix(self, name: str) -> Tensor:
        """The weight of a layer as a matrix [o, i], row by row in memory; of a convolution i is channels x kernel."""
        found = matrix(self.layers[name]).contiguous()
        streamed = self.model.streamed  # its weights have the types of their files, and are not on its device
        return found if streamed is None else found.to(streamed.device, torch.float32)

    def mask_of(self, kept: Mapping[str, Tensor]) -> Mask:
        """A mask of some of this model's layers, from tensors of their parameters' shapes; more may be added."""
        return Mask(kept, self.modality, transposed=[name for name, form in self.forms.items() if form.transposed])

    def cut(self, scores: Scores, sparsity: float) -> Mask:
        """The mask that the allocation makes of the scores at one sparsity."""
        return self.cut_all(scores, [sparsity])[sparsity]

    def cut_all(self, scores: Scores, sparsities: Sequence[float]) -> dict[float, Mask]:
        """The masks that the allocation makes of the scores, one per sparsity."""
        magnitudes = self.magnitudes()
        if self.factors:
            scores, magnitudes = weighted(scores, self.factors), weighted(magnitudes, self.factors)
        cuts = self.allocate(scores, magnitudes, self.modality, sparsities)
        return Mask.cut(scores, cuts, sparsities, self.modality, self.forms)

    def magnitudes(self) -> Scores:
        """|W| of each layer, computed on access; InputError when any is NaN or infinite."""
        return Scores(self.shapes, lambda name: self.to_host(name, self.matrix(name).abs()))

    @classmethod
    def plan(cls, options: Any, num_batches: int, available: int, masks: int) -> tuple[int | None, int]:
        """How much data the method reads.

        num_batches: steps requested; available: steps until the data ends (at most num_batches); masks: how many.
        Returns the steps of one round (None: once through the data) and those of the whole run.
        """
        return None, available

    def pairs_in_all(self) -> int | None:
        """Steps through the data for one mask; None: once through."""
        return self.work.pairs

    def gather(
        self,
        statistic: Statistic,
        start: int = 0,
        stop: int | None = None,
        also: State = ({}, {}),
        save: bool = True,
        wrap: bool = True,
    ) -> None:
        """Feed the units of the steps start <= pair < stop (None: to the end of the data) to a statistic.

        wrap: start the data again when it ends before `stop`. also: what the checkpoint must hold besides the statistic
        (tensors, progress of rounds). save: whether this pass is checkpointed; a pass that is short, or too large to
        save, is repeated instead.
        """
        work = self.work
        seen = 0
        for ranks in self._rounds_of_units(statistic, start, stop, wrap):
            statistic.merge(work.group, ranks)
            seen += len(ranks)
            work.advance(len(ranks) / len(work.sides))
            if not save:
                interrupt.check()
            elif seen % len(work.sides) == 0:
                progress = also[1] | {"pairs": start + seen // len(work.sides)}
                moved = self._moved if statistic.follows_state else {}
                work.checkpoint.offer(lambda p=progress, m=moved: (statistic.state() | m | also[0], p))
        if seen == 0 and start == 0:
            raise InputError("the calibration data is empty: give at least one batch")

    def _rounds_of_units(self, statistic: Statistic, start: int, stop: int | None, wrap: bool) -> Iterator[list[int]]:
        """Give each process one unit at a time; yields the ranks of the processes that had one.

        If a loss depends on earlier batches (queues, momentum), every process steps through all units in order, but
        only updates the model's state for those of the others.
        """
        work, device = self.work, device_of(self.model)
        group = work.group
        follow = group.size > 1 and statistic.follows_state
        first = 0 if follow else start * len(work.sides) % group.size  # the process with the first unit
        units = stream(work.batches, work.sides, Group() if follow else group, start, stop, wrap)
        while True:
            mine = False
            for rank in range(group.size) if follow else [group.rank]:
                unit = next(units, None)
                if unit is not None:
                    own = rank == group.rank
                    mine |= own
                    self.see(statistic.update if own else statistic.pass_by, unit, device)
            ranks = group.ranks_with_work(mine, device, first)
            if not ranks:
                return
            yield ranks

    def gather_once(self, statistic: Statistic) -> None:
        """One pass over the data, resumed from a checkpoint if there is one."""
        start = 0
        saved = self.work.checkpoint.load()
        if saved is not None:
            statistic.restore(saved[0])
            self._move(saved[0])
            start = saved[1]["pairs"]
            self.work.advance(start)
        if self.model.streamed is None:
            self.gather(statistic, start, self.work.pairs)
        else:
            gather_streamed(self, statistic, start, None if saved is None else saved[1].get("block"))

    @property
    def _moved(self) -> dict[str, Tensor]:
        """What the losses of earlier batches changed, and those of later ones depend on (queues, momentum copies)."""
        return {f"moved/{i}": tensor for i, tensor in enumerate(self.model.moving_tensors())}

    def _move(self, saved: Mapping[str, Tensor]) -> None:
        """Resume from such tensors, where they were saved."""
        for name, tensor in self._moved.items():
            if name in saved:
                tensor.copy_(saved[name])

    def see(self, look: Callable[[Batch], None], unit: Unit, device: torch.device) -> None:
        """Call `look` on a unit, seeded; InputError for a unit that cannot be used."""
        check_batch(unit)
        try:
            with seeded(self.work.seed, "unit", unit.index, device=device), self.work.autocast():
                look(to_device(unit.batch, device))
        except KeyError as error:
            raise lacks_field(unit, error) from error

    def to_host(self, name: str, scores: Tensor) -> np.ndarray:
        """Scores [o, i] of a layer as float32 on the CPU; InputError when any is NaN or infinite."""
        # A sum is finite only if every element is, so that one cheap number nearly always settles it.
        if not torch.isfinite(scores.sum()) and not torch.isfinite(scores).all():
            what = "scores" if torch.isfinite(self.layers[name].weight).all() else "weights"
            raise InputError(f"layer '{name}' has {what} that are NaN or infinite: check the weights and the data")
        return scores.detach().float().cpu().numpy()


class OneShot(Pruner):
    """A pruner whose scores serve every sparsity.

    keep_scores: whether they are held in memory; scores from weights and small statistics are computed on each access.
    """

    keep_scores: ClassVar[bool] = True
    _scores: Scores | None = None

    @abstractmethod
    def score(self, name: str) -> Tensor:
        """Scores [o, i] of a layer, float32, any device; the lowest are pruned first."""

    def scores(self) -> Scores:
        """The scores of all layers; InputError when a weight or a score is NaN or infinite."""
        if self._scores is None:
            if self.keep_scores:
                made = in_threads(self._scored, self.layers)
                self._scores = Scores.of(dict(zip(self.layers, made, strict=True)))
            else:
                self._scores = Scores(self.shapes, self._scored)
        return self._scores

    def _scored(self, name: str) -> np.ndarray:
        with torch.no_grad():
            return self.to_host(name, self.score(name))

    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """Masks from the scores, by the allocation."""
        return self.cut_all(self.scores(), sparsities)


class InputAware(OneShot):
    """A one-shot method whose criterion uses a weight matrix and the norms of its input channels."""

    uses_data = True
    keep_scores = False  # computed from the norms on access
    Options = TokenOptions  # that of a method extends them

    def calibrate(self) -> None:
        """Gather the norm of every input channel in one pass."""
        self.norms = InputNorms(self.model, self.layers, self.options.share, self.choice)
        self.gather_once(self.norms)
        self.unreached = self.norms.without_input()

    @abstractmethod
    def criterion(self, weight: Tensor, norm: Tensor) -> Tensor:
        """weight [o, i], norm [i] float32 of its input channels -> scores [o, i] float32."""

    def score(self, name: str) -> Tensor:
        """Scores [o, i] of a layer; rows that read other inputs (nn.MultiheadAttention) are scored separately."""
        weight = self.matrix(name)
        parts = [self.criterion(weight[rows], norm) for rows, norm in self.norms.by_rows(name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Rounds(Pruner):
    """A method that prunes in rounds, each on the result of the last; every sparsity starts from the dense model."""

    uses_data = True
    uses_gradients = True
    uses_rounds = True

    @classmethod
    def plan(cls, options: Any, num_batches: int, available: int, masks: int) -> tuple[int | None, int]:
        """`num_batches` per round; the data starts again when it ends."""
        return num_batches, num_batches * options.epochs * masks

    def pairs_in_all(self) -> int | None:
        """The steps of all rounds."""
        return None if self.work.pairs is None else self.work.pairs * self._count

    @property
    def _count(self) -> int:
        return getattr(self.options, "epochs", 1)

    def span(self, turn: int) -> tuple[int, int | None]:
        """The steps of the data that round `turn` reads; (0, None): once through."""
        pairs = self.work.pairs
        return (0, None) if pairs is None else (turn * pairs, (turn + 1) * pairs)

    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """Run the rounds for each sparsity; a resumed run skips those that are finished."""
        progress = Progress.load(self.work.checkpoint, self.mask_of) if self.resumes else Progress({})
        self.work.advance(progress.pairs_done(self._count, self.work.pairs))
        for sparsity in sparsities:
            if sparsity not in progress.finished:
                weights = [layer.weight for layer in self.layers.values()]
                with restored(weights), moving_restored(self.model):
                    self._move(progress.sums or {})
                    progress.finished[sparsity] = self.rounds(sparsity, progress)
        return {sparsity: progress.finished[sparsity] for sparsity in sparsities}

    @abstractmethod
    def rounds(self, sparsity: float, progress: Progress) -> Mask:
        """The mask at one sparsity after all rounds, starting where `progress` says.

        The model's weights may be changed: the caller restores them.
        """
