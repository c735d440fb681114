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
from training.clock import Clock
from training.compiling import compile_blocks
from training.epoch_weights import Metrics, keep_epoch, load_best, write_model
from training.fabric import make_fabric
from training.kept import as_json, count_kept, show_kept
from training.logging_wandb import WandbLog, start_wandb
from training.loop import Loop, fit
from training.optimizer import Recipe
from training.results import device_name, refuse_finished, versions, write_settings
from training.samples import draw_samples
from training.sparse import SparseLock

DEBUG_SAMPLES = 32
SECONDS = "seconds.json"


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
    """What a script tells of its task.

    A task whose losses compare all batches of an optimizer step has `rehearses` = True and `rehearse(model, batch)`,
    which is called with each of them before `losses` is.
    """

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

    def forward(self, batch: Batch, rehearsal: bool = False) -> dict[str, torch.Tensor]:
        """Named losses; none in a rehearsal, in which the task looks at what its losses will need of all batches."""
        if rehearsal:
            self._task.rehearse(self.model, batch)
            return {}
        return self._task.losses(self.model, batch, self.step / self._epoch)


def finetune(
    args: argparse.Namespace,
    config: Finetuning,
    make_task: MakeTask,
    task_name: str,
    variant: str = "",
    dataset: str = "",
    mask_inside: bool = False,
) -> Metrics:
    """Train, evaluate, and leave config.yaml, weights (best, last), results.json, logs and samples.png in the folder.

    variant: a folder of its own below the task's. dataset: the chosen one, of a task with several. mask_inside: let the
    last weights contain their mask, for a task that goes on from them. Returns what results.json holds.
    """
    seed = config.seed if args.seed is None else args.seed
    precision = args.precision or config.precision
    mask = chosen_mask(args)
    folder = output_folder(args, Path(task_name, dataset or variant), seed)
    check_writable(folder)
    accumulate = config.accumulation(args.devices * args.num_nodes)
    fabric = make_fabric(args.accelerator, args.devices, args.num_nodes, precision)
    leads = fabric.is_global_zero
    interrupt.listen()
    snapshot = chosen_snapshot(args)
    clock = Clock(folder / SECONDS, earlier_seconds(folder, snapshot))
    software = versions() if leads else {}
    model = load_task_model(args.model, task_name, weights=args.weights, overrides=config.model)
    lock = SparseLock(model, mask) if mask is not None else None
    loaded = {"at the start" if lock is None else "after loading the mask": count_kept(model)}
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
        "compile": args.compile or None,
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
        start=snapshot,
        epoch=epoch_steps,
        rehearse=getattr(task, "rehearses", False),
    )
    refuse_finished(folder / "results.json", loop.identity)
    if args.compile:
        compile_blocks(model, fabric.device)
    wandb, begun, done = WandbLog(), False, False

    def micro_batches(first: int) -> Iterator[Batch]:
        numbers = range(first * world + fabric.global_rank, loop.steps * accumulate * world, world)
        for item in load(side, numbers, args.num_workers):
            yield item.batch

    def started(step: int) -> None:
        nonlocal wandb, begun
        objective.step = step  # of a resumed run, too
        about = {**loop.identity, "mask_file": args.mask, "device": device_name(fabric.device)}
        with clock.doing("total"):
            wandb = start_wandb(fabric, folder, args.wandb, args.wdb_offline, args.experiment_name, about)
        if step == loop.steps and (folder / "results.json").is_file():
            clock.stand_still()
        if leads:
            write_settings(folder / "config.yaml", config, dataset, seed=seed, precision=precision)
            for notice in getattr(task, "notices", ()):
                console.print(notice)
            show_kept(loaded)
            clock.save()  # a sitting counts from its start, however soon it is killed
        begun = True

    def step_done(step: int) -> None:
        objective.step = step
        if leads:
            clock.save(now=False)

    def epoch_done(epoch: int) -> None:
        if lock is not None:
            lock.check()
        model.eval()
        with clock.doing("evaluation"):
            found = task.evaluate(fabric, model, "val", epoch)
        if leads:
            keep_epoch(folder, epoch, found, model, task.decides)
            clock.save()
            wandb.epoch(epoch, found, epoch * epoch_steps)
        fabric.barrier()

    loop.started.append(started)
    loop.after_step.append(step_done)
    loop.after_epoch.append(epoch_done)
    loop.after_log.append(lambda row: wandb.training(row))
    if lock is not None:
        loop.before_step.append(lock.hold)
    try:
        with clock.doing("training"):
            fit(fabric, objective, micro_batches, loop)
        model.eval()
        if leads:
            write_model(folder / "last.safetensors", model, epochs, lock.mask if lock and mask_inside else None)
        fabric.barrier()
        best = load_best(folder, model, task.decides)
        if lock is not None:
            lock.check()
        kept = loaded | {"after training": count_kept(model)}
        with clock.doing("evaluation"):
            metrics = task.evaluate(fabric, model, "test", best)
        result = {
            "metrics": metrics,
            "epoch": best,
            "run": loop.identity,
            "mask_file": None if lock is None else args.mask,
            "kept": dict(zip(("after_loading", "after_training"), map(as_json, kept.values()), strict=True)),
            "seconds": clock.seconds(),
            "machine": {"device": device_name(fabric.device), "processes": world, "nodes": args.num_nodes},
            "versions": software,
        }
        if leads:
            write_json(folder / "results.json", result)
            show_kept(kept)
            console.print(f"results: {folder / 'results.json'}")
            wandb.results(result)
            draw_samples(task, folder / "samples.png", f"{args.model} {task_name}, {mask_label(args)}")
        done = True
    finally:
        wandb.close(failed=not done)
        if leads and begun:  # else the folder may be another run's
            clock.save()
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


def earlier_seconds(folder: Path, start: Path | None) -> Path | None:
    """The file with what the earlier sittings took: beside the snapshot that the run goes on from; None where none."""
    own = folder / "snapshot.pt"
    snapshot = own if own.is_file() else start
    return None if snapshot is None else snapshot.parent / SECONDS


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
