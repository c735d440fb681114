"""The one training loop of all scripts.

A script supplies batches by number, a module whose forward returns named losses, and the recipe. Batch order, dropout
and negatives are functions of the seed and the step, so a run that is killed and resumed ends with the same weights,
bit for bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn

from console.errors import InputError, is_out_of_memory
from console.interrupt import interrupt
from console.progress import console, progress_bar
from data.randomness import derive_seed, seed_generators
from models.common.memory import keep_freed_memory
from sparsity.sparsifiers import Dense, Sparsifier
from storage.atomic import remove_parts
from storage.log import append_json_line, keep_json_lines
from training.optimizer import Recipe, make_optimizer, set_rate
from training.snapshot import load_snapshot, save_snapshot

Losses = dict[str, Tensor]

LOG = "log.jsonl"
"""Log of losses, in a run's folder."""

FAR = 1.0e10
"""Weights or gradients above this mean that training diverges."""


class Callback:
    """Hooks into the training loop. A subclass overrides some; single functions can be passed by name.

    name: key of its state in snapshots, if it has a state.
    """

    name = ""

    def __init__(self, **functions: Callable[..., None]):
        for name, function in functions.items():
            assert hasattr(Callback, name), name
            setattr(self, name, function)

    def started(self, step: int) -> None:
        """Training starts at `step`, after a snapshot of this run, if any, was loaded."""

    def after_backward(self) -> None:
        """All gradients of a step are computed, and not yet clipped."""

    def after_update(self, step: int) -> None:
        """After the optimizer's step number `step`, before gradients are cleared."""

    def after_step(self, step: int) -> None:
        """After the gradients are cleared."""

    def after_epoch(self, epoch: int) -> None:
        """Epoch number `epoch` has ended."""

    def after_log(self, row: dict[str, Any]) -> None:
        """A row of log.jsonl was written; on the first process only."""

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: tensors, numbers, texts, and dicts and lists of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""


@dataclass
class Loop:
    """What `fit` needs besides the module and the data."""

    title: str  # of the progress bar
    recipe: Recipe
    steps: int  # optimizer steps in total
    seed: int
    folder: Path  # of snapshot and log
    identity: dict[str, Any]  # what defines the run; a snapshot of another identity is refused
    accumulate: int = 1  # micro-batches per step and process
    snapshot_seconds: float = 120.0  # between snapshots
    snapshot_steps: int | None = None  # also save every so many steps; None: by time only
    log_every: int = 50  # steps per row of log.jsonl
    start: Path | None = None  # snapshot to resume from if the folder has none
    epoch: int = 0  # steps per epoch, after which a snapshot is saved; 0: no epochs
    rehearse: bool = False  # first call module(batch, rehearsal=True) without gradients on all micro-batches of a step
    sparsifier: Sparsifier = field(default_factory=Dense)  # what happens to the weights
    rates: Mapping[str, float] = field(default_factory=dict)  # substring of a name -> learning rate, before lr_scale
    callbacks: list[Callback] = field(default_factory=list)

    @property
    def snapshot(self) -> Path:
        """File of the run's state."""
        return self.folder / "snapshot.pt"

    @property
    def origin(self) -> Path | None:
        """The snapshot to resume from; None at the start."""
        return self.snapshot if self.snapshot.is_file() else self.start


def fit(fabric: Fabric, module: nn.Module, micro_batches: Callable[[int], Iterator[Any]], loop: Loop) -> nn.Module:
    """Train `module` (in place) for `loop.steps` optimizer steps and return it.

    micro_batches(n): this process's micro-batches from the n-th on, in order, already cut to its share.
    module(batch): named scalar losses; their sum is minimised.
    """
    on_cpu = fabric.device.type == "cpu"
    if on_cpu:
        keep_freed_memory()
    own = {part: rate / loop.recipe.lr for part, rate in loop.rates.items()}
    recipe = replace(loop.recipe, lr_scale=own | loop.recipe.lr_scale)
    optimizer = make_optimizer(loop.sparsifier.trained(module), recipe, fused=on_cpu)
    # Before a snapshot is loaded: the optimizer's state takes the weights' type.
    wrapped = fabric.setup_module(module)
    if fabric.is_global_zero:
        remove_parts(loop.snapshot)
    step = 0
    means = _Means(fabric)
    own_state = {"sparsifier": loop.sparsifier, "means": means}
    parts = own_state | {part.name: part for part in loop.callbacks if part.name}
    origin = loop.origin
    if origin is not None:
        step = load_snapshot(origin, module, optimizer, loop.identity, fabric.strategy.precision, parts)
    for callback in loop.callbacks:
        callback.started(step)
    if fabric.is_global_zero:
        # A run that resumes from another folder's snapshot continues that folder's log.
        source = None if origin is None else origin.parent / LOG
        keep_json_lines(loop.folder / LOG, lambda line: line["step"] <= step, source)
    optimizer = fabric.setup_optimizers(optimizer)
    wrapped.train()
    batches = micro_batches(step * loop.accumulate)
    saved = time.monotonic()
    with progress_bar(loop.title, loop.steps, done=step, show=fabric.is_global_zero) as advance:
        while step < loop.steps:
            rate = set_rate(optimizer, loop.recipe.schedule.factor(step, loop.steps, loop.epoch))
            micro_step: Iterable[Any] = (next(batches) for _ in range(loop.accumulate))
            if loop.rehearse:
                micro_step = list(micro_step)
                for micro, batch in enumerate(micro_step):
                    _set_randomness(fabric, loop.seed, step, micro)
                    with torch.no_grad():
                        wrapped(fabric.to_device(batch), rehearsal=True)
            with _explained(module, step):
                for micro, batch in enumerate(micro_step):
                    _set_randomness(fabric, loop.seed, step, micro)
                    last = micro == loop.accumulate - 1
                    with fabric.no_backward_sync(wrapped, enabled=not last):
                        losses = wrapped(fabric.to_device(batch))
                        fabric.backward(sum(losses.values()) / loop.accumulate)
                    means.add(losses)
                loop.sparsifier.after_backward()
                for callback in loop.callbacks:
                    callback.after_backward()
                if loop.recipe.clip is not None:
                    # Infinite gradients are expected in half precision: the loss scaler skips such a step.
                    strict = fabric.strategy.precision.precision != "16-mixed"
                    norm = loop.recipe.clip
                    fabric.clip_gradients(wrapped, optimizer, max_norm=norm, error_if_nonfinite=strict)
            optimizer.step()
            step += 1
            loop.sparsifier.after_update(step)
            for callback in loop.callbacks:
                callback.after_update(step)
            optimizer.zero_grad(set_to_none=True)
            for callback in loop.callbacks:
                callback.after_step(step)
            advance(1)
            if step % loop.log_every == 0 or step == loop.steps:
                values = means.take()
                if not all(map(math.isfinite, values.values())):  # equal on all processes
                    raise _diverged(step)
                advance(0, f"lr {rate:.1e} " + " ".join(f"{name} {value:.3f}" for name, value in values.items()))
                if fabric.is_global_zero:
                    row = {"step": step, "lr": rate} | values | loop.sparsifier.log()
                    append_json_line(loop.folder / LOG, row)
                    for callback in loop.callbacks:
                        callback.after_log(row)
            ended = loop.epoch > 0 and step % loop.epoch == 0
            if ended:
                for callback in loop.callbacks:
                    callback.after_epoch(step // loop.epoch)
                wrapped.train()
            stop, late = _any_process(fabric, interrupt.requested, time.monotonic() - saved > loop.snapshot_seconds)
            if (
                stop
                or ended
                or step == loop.steps
                or (loop.snapshot_steps is not None and step % loop.snapshot_steps == 0)
                or late
            ):
                means.gather()
                if fabric.is_global_zero:
                    save_snapshot(
                        loop.snapshot, module, optimizer, step, loop.identity, fabric.strategy.precision, parts
                    )
                saved = time.monotonic()
            if stop:
                if fabric.is_global_zero:
                    console.print(f"stopped after step {step} of {loop.steps}: the same command resumes it")
                raise KeyboardInterrupt
    return module


@contextlib.contextmanager
def _explained(module: nn.Module, step: int) -> Iterator[None]:
    """Report divergence, if an error of sampling or clipping comes from values that are not finite."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        tensors = (t for p in module.parameters() for t in (p, p.grad) if t is not None)
        if all(bool((tensor.abs() < FAR).all()) for tensor in tensors):  # False for NaN
            raise
        raise _diverged(step) from error


def _diverged(step: int) -> InputError:
    return InputError(
        f"training has diverged: at step {step} the loss is not finite; lower lr, raise warmup, or clip gradients "
        "(recipe:), and start again in another folder"
    )


def _set_randomness(fabric: Fabric, seed: int, step: int, micro: int) -> None:
    """Seed dropout and draws of a micro-batch by its number, so that rehearsals and resumed runs repeat them."""
    number = micro * fabric.world_size + fabric.global_rank
    seed_generators(derive_seed(seed, "step", step, 0, number), fabric.device)


class _Means:
    """Running means of named losses since the last log row, without synchronising the device at every step.

    Snapshots contain the sums of all processes, so that a row after resuming includes the steps before it.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._sums: dict[str, Tensor] = {}
        self._count: dict[str, int] = {}
        self._gathered: list[dict[str, tuple[Tensor, int]]] = []

    def add(self, losses: Losses) -> None:
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + loss.detach()
            self._count[name] = self._count.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means over the micro-batches of all processes; all must call it, and get the same numbers."""
        self.gather()
        self._sums, self._count = {}, {}
        found: dict[str, list[tuple[float, int]]] = {}
        for part in self._gathered:
            for name, (total, n) in part.items():
                found.setdefault(name, []).append((total.item() / n, n))
        return {
            name: round(sum(mean * n for mean, n in means) / sum(n for _, n in means), 5)
            for name, means in found.items()
        }

    def gather(self) -> None:
        """Gather the sums of every process; all must call it, also before a snapshot."""
        mine = {name: (total.cpu(), self._count[name]) for name, total in self._sums.items()}
        self._gathered = [mine]
        if self._fabric.world_size > 1:
            self._gathered = [{} for _ in range(self._fabric.world_size)]
            dist.all_gather_object(self._gathered, mine)

    def state_dict(self) -> dict[str, Any]:
        """The gathered sums by process; empty if there are none."""
        parts = [{name: list(sums) for name, sums in part.items()} for part in self._gathered]
        return {"processes": parts} if any(parts) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        mine = state["processes"][self._fabric.global_rank]
        self._sums = {name: total.to(self._fabric.device) for name, (total, _) in mine.items()}
        self._count = {name: n for name, (_, n) in mine.items()}


def _any_process(fabric: Fabric, *flags: bool) -> list[bool]:
    """For each flag, whether any process raised it: all must stop or save at the same step."""
    if fabric.world_size == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.float32, device=fabric.device)
    return [bool(count) for count in fabric.all_reduce(raised, reduce_op="sum").tolist()]
