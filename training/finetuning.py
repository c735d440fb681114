"""Finetuning a task model under a fixed mask: epochs, an evaluation after each, the best and the last kept apart.

A script supplies a `Task`: which reader trains, what is evaluated on which split, which number decides. The rest,
from the mask to results.json, is here and the same for all of them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import nn

from console.errors import InputError
from console.interrupt import interrupt
from console.progress import console
from data.batches import Side, load
from data.readers import Batch, ReaderConfig, make_reader
from data.tokenizer import load_tokenizer
from models.tasks import load_task_model
from pruners.mask import Mask
from storage.atomic import check_writable, write_json
from storage.log import append_json_line, keep_json_lines
from storage.tensors import read_safetensors, write_safetensors
from training.fabric import make_fabric
from training.loop import Loop, fit
from training.optimizer import Recipe
from training.samples import draw_samples
from training.sparse import SparseLock

Metrics = dict[str, Any]

DEBUG_SAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """How to train: the part of a task's configuration that is the same for all tasks.

    batch_size: samples a process and forward pass. effective_batch: samples an optimizer step (None: one pass of all
    processes). model: what the task changes of the model's configuration. snapshot_steps: save what resuming needs
    after every so many steps, too.
    """

    epochs: int
    batch_size: int
    recipe: Recipe
    train: ReaderConfig
    effective_batch: int | None = None
    seed: int = 42
    precision: str = "32-true"
    model: dict[str, Any] = field(default_factory=dict)
    snapshot_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "snapshot_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")

    def accumulation(self, processes: int) -> int:
        """Forward passes a process and step; InputError when the effective batch cannot be made of them."""
        wanted, together = self.effective_batch or self.batch_size * processes, self.batch_size * processes
        if wanted % together:
            raise InputError(
                f"an effective batch of {wanted} cannot be made of {processes} process(es) with {self.batch_size} "
                "samples each: change batch_size, effective_batch or --devices so that it divides evenly"
            )
        return wanted // together


class Task(Protocol):
    """What a script tells of its task."""

    name: str
    decides: str | None
    """Metric of the validation split whose highest value picks the epoch that is tested; None: the last epoch."""

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, torch.Tensor]:
        """Named losses of a training batch; progress: epochs done, with fractions."""
        ...

    def evaluate(self, fabric: Fabric, model: nn.Module, split: str, epoch: int | None) -> Metrics:
        """Numbers of a split, `val` or `test`, on every process alike; {} when there is nothing to evaluate.

        A task may also have `samples()`, asked on the first process after the last evaluation: training/samples.py.
        """
        ...


MakeTask = Callable[[nn.Module, Any, Path, int | None], Task]
"""model, tokenizer, output folder, how many evaluation samples at most (None: all) -> the task, its data opened."""


class Objective(nn.Module):
    """The module that the loop trains: the model with the task's losses."""

    def __init__(self, model: nn.Module, task: Task, epoch: int):
        super().__init__()
        self.model = model
        self._task, self._epoch = task, epoch
        self.step = 0

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Named losses."""
        return self._task.losses(self.model, batch, self.step / self._epoch)


def finetune(
    args: argparse.Namespace,
    config: Finetuning,
    make_task: MakeTask,
    task_name: str,
    subfolder: str = "",
    mask_inside: bool = False,
) -> Metrics:
    """Train, evaluate, and leave in the output folder: weights (best, last), results.json, samples.png, epochs and log.

    mask_inside: let the last weights contain their mask, for a task that goes on from them. Returns what results.json
    holds.
    """
    seed = config.seed if args.seed is None else args.seed
    precision = args.precision or config.precision
    mask = chosen_mask(args)
    folder = output_folder(args, Path(task_name, subfolder), seed)
    check_writable(folder)
    accumulate = config.accumulation(args.devices * args.num_nodes)
    fabric = make_fabric(args.accelerator, args.devices, args.num_nodes, precision)
    interrupt.listen()
    model = load_task_model(args.model, task_name, weights=args.weights, overrides=config.model)
    lock = SparseLock(model, mask) if mask is not None else None
    tokenizer = load_tokenizer(model.tokenizer)
    reader = make_reader(config.train, model.image_shape, tokenizer)
    side = Side("train", reader, config.batch_size, seed, whole=True)
    task = make_task(model, tokenizer, folder, DEBUG_SAMPLES if args.debug else None)
    world = fabric.world_size
    epochs, epoch_steps = config.epochs, math.ceil(side.batches / (world * accumulate))
    if args.debug:
        epochs, epoch_steps = 1, 2
    objective = Objective(model, task, epoch_steps)
    identity = {
        "task": task_name,
        "model": args.model,
        "weights": args.weights,
        "mask": None if lock is None else lock.mask.source | {"sparsity": lock.mask.sparsity()},
        "config": {key: value for key, value in asdict(config).items() if key != "snapshot_steps"},
        "seed": seed,
        "processes": world,
        "precision": precision,
    }
    loop = Loop(
        title=f"{args.model} {task_name}",
        recipe=config.recipe,
        steps=epochs * epoch_steps,
        seed=seed,
        folder=folder,
        identity=json.loads(json.dumps(identity)),
        accumulate=accumulate,
        snapshot_seconds=args.snapshot_seconds,
        snapshot_steps=config.snapshot_steps,
        start=chosen_snapshot(args),
        epoch=epoch_steps,
    )

    def micro_batches(first: int) -> Iterator[Batch]:
        numbers = range(first * world + fabric.global_rank, loop.steps * accumulate * world, world)
        for loaded in load(side, numbers, args.num_workers):
            yield loaded.batch

    def step_done(step: int) -> None:
        objective.step = step

    def epoch_done(epoch: int) -> None:
        if lock is not None:
            lock.check()
        model.eval()
        found = task.evaluate(fabric, model, "val", epoch)
        if fabric.is_global_zero:
            keep_epoch(folder, epoch, found, model, task.decides)
        fabric.barrier()

    loop.after_step.append(step_done)
    loop.after_epoch.append(epoch_done)
    if lock is not None:
        loop.before_step.append(lock.hold)
    fit(fabric, objective, micro_batches, loop)
    model.eval()
    if fabric.is_global_zero:
        write_model(folder / "last.safetensors", model, epochs, lock.mask if lock is not None and mask_inside else None)
    fabric.barrier()
    best = load_best(folder, model, task.decides)
    if lock is not None:
        lock.check()
    result = {"metrics": task.evaluate(fabric, model, "test", best), "epoch": best, "run": loop.identity}
    if fabric.is_global_zero:
        write_json(folder / "results.json", result)
        console.print(f"results: {folder / 'results.json'}")
        draw_samples(task, folder / "samples.png", f"{args.model} {task_name}, {mask_label(args)}")
    return result


def chosen_mask(args: argparse.Namespace) -> Mask | None:
    """The mask to train under; InputError when neither a mask nor --dense is given."""
    if args.dense:
        if args.mask:
            console.print("--dense and --mask are both given: training all weights, the mask is not used")
        return None
    if not args.mask:
        raise InputError("give the mask to train under with --mask FILE, or --dense to train all weights")
    return Mask.load(args.mask)


def chosen_snapshot(args: argparse.Namespace) -> Path | None:
    """The snapshot asked for; InputError when it is not there."""
    if args.snapshot is None:
        return None
    if not Path(args.snapshot).is_file():
        raise InputError(f"there is no snapshot {args.snapshot}: check the path, or leave --snapshot out")
    return Path(args.snapshot)


def output_folder(args: argparse.Namespace, below: Path, seed: int) -> Path:
    """Where the run writes; with --incremental the first of <folder>, <folder>_2, ... that is not there yet."""
    name = args.output_dir or f"runs/{below}/{args.model}_{mask_label(args)}_seed{seed}"
    if args.debug:
        name += "_debug"
    folder, number = Path(name), 1
    while args.incremental and folder.exists():
        number += 1
        folder = Path(f"{name}_{number}")
    return folder


def mask_label(args: argparse.Namespace) -> str:
    """What the output folder is called after: the mask's file; the run that wrote it, where weights contain it."""
    if args.dense or not args.mask:
        return "dense"
    path = Path(args.mask).resolve()
    return path.parent.name if path.stem == "last" else path.stem


def keep_epoch(folder: Path, epoch: int, found: Metrics, model: nn.Module, decides: str | None) -> None:
    """Log an epoch's numbers, and keep its weights when they are the best so far."""
    log = folder / "epochs.jsonl"
    keep_json_lines(log, lambda line: line["epoch"] < epoch)  # a resumed run comes by here again
    before = read_epochs(folder)
    append_json_line(log, {"epoch": epoch, **found})
    if decides is not None and all(found[decides] > line[decides] for line in before):
        write_model(folder / "best.safetensors", model, epoch)


def write_model(path: Path, model: nn.Module, epoch: int, mask: Mask | None = None) -> None:
    """The state dict, each tied tensor once, with the number of the epoch it is of; mask: to go with it."""
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    masks, about = mask.inside_weights() if mask is not None else ({}, {})
    write_safetensors(path, untied(state) | masks, {"format": "pt", "epoch": str(epoch)} | about)


def read_epochs(folder: Path) -> list[Metrics]:
    """The numbers of the epochs so far."""
    log = folder / "epochs.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def load_best(folder: Path, model: nn.Module, decides: str | None) -> int | None:
    """Put the best epoch's weights into the model and return its number; None where the last one counts."""
    if decides is None:
        return None
    state, metadata = read_safetensors(folder / "best.safetensors")
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    return int(metadata["epoch"])


def untied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tied tensor once."""
    seen: set[int] = set()
    found = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor
    return found
