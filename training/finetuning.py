"""Finetuning a task model under a fixed mask: epochs, an evaluation after each, the best and the last kept apart.

A script supplies a `Task` (tasks/base.py). The rest, from the mask to results.json, is here and the same for all.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from console.errors import InputError
from console.interrupt import interrupt
from console.progress import console
from console.words import counted
from data.batches import Side, load
from data.readers import Batch, make_reader
from data.tokenizer import load_tokenizer
from evaluation.items import FILE, write_items
from models.tasks import load_task_model
from storage.atomic import check_writable, no_empty_folder, write_json
from tasks.base import Finetuning, MakeTask, Objective
from training.choices import (
    SECONDS,
    check_numbers,
    chosen_mask,
    chosen_snapshot,
    earlier_seconds,
    mask_label,
    output_folder,
)
from training.clock import Clock
from training.compiling import compile_blocks
from training.epoch_weights import Metrics, bring_epochs, check_epochs, keep_epoch, load_best, write_model
from training.evaluating import Evaluation
from training.fabric import loader_processes, make_fabric
from training.kept import as_json, count_kept, show_kept
from training.logging_wandb import WandbLog, start_wandb
from training.loop import Loop, fit
from training.passes import told_of_epochs
from training.replaced import Replaced, missing_images
from training.results import device_name, refuse_finished, told, versions, write_settings
from training.samples import draw_samples
from training.sole_run import sole_run
from training.sparse import SparseLock

DEBUG_SAMPLES = 32
NO_IDENTITY = ("snapshot_steps", "seed", "precision")
"""Of a configuration: what does not change the run, and what the command line may set, which is told apart from it."""


def finetune(
    args: argparse.Namespace,
    config: Finetuning,
    make_task: MakeTask,
    task_name: str,
    variant: str = "",
    dataset: str = "",
    mask_inside: bool = False,
) -> Metrics:
    """Train, evaluate, and leave config.yaml, weights (best, last), items.json, results.json, logs and samples.png.

    variant: a folder of its own below the task's. dataset: the chosen one, of a task with several. mask_inside: let the
    last weights contain their mask, for a task that goes on from them. Returns what results.json holds.
    """
    check_numbers(args)
    config.accumulation(args.devices * args.num_nodes)
    seed = config.seed if args.seed is None else args.seed
    precision = args.precision or config.precision
    fabric = make_fabric(args.accelerator, args.devices, args.num_nodes, precision)
    # --incremental looks at what is there: processes that each did so would find each other's folder in the way.
    folder = fabric.broadcast(output_folder(args, Path(task_name, dataset or variant), seed))
    with no_empty_folder(folder):
        run = _Run(args, config, make_task, task_name, dataset, mask_inside, fabric, folder, seed, precision)
        with sole_run(fabric, folder):
            return run.go()


class _Run:
    """One sitting of a run: everything is opened and checked at first, `go` trains, and the loop calls back."""

    def __init__(
        self,
        args: argparse.Namespace,
        config: Finetuning,
        make_task: MakeTask,
        task_name: str,
        dataset: str,
        mask_inside: bool,
        fabric: Fabric,
        folder: Path,
        seed: int,
        precision: str,
    ):
        self.args, self.config, self.task_name, self.dataset = args, config, task_name, dataset
        self.fabric, self.folder, self.seed, self.precision = fabric, folder, seed, precision
        self.leads, self.world = fabric.is_global_zero, fabric.world_size
        accumulate = config.accumulation(self.world)
        mask = chosen_mask(args)
        check_writable(self.folder)
        self.workers = loader_processes(fabric, args.num_workers, args.devices)
        interrupt.listen()
        snapshot = chosen_snapshot(args)
        self.clock = Clock(self.folder / SECONDS, earlier_seconds(self.folder, snapshot))
        self.software = versions() if self.leads else {}  # now: the files may change while it trains
        self.model = load_task_model(args.model, task_name, weights=args.weights, overrides=config.model)
        self.lock = SparseLock(self.model, mask) if mask is not None else None
        self.mask_inside = self.lock.mask if self.lock is not None and mask_inside else None
        self.kept = {"at the start" if mask is None else "after loading the mask": count_kept(self.model)}
        tokenizer = load_tokenizer(self.model.tokenizer)
        reader = make_reader(config.train, self.model.image_shape, tokenizer)
        if (there := len(reader.source)) < config.batch_size:
            raise InputError(f"a batch of {config.batch_size} takes more than the {there} samples: lower batch_size")
        self.replaced, self.missing = Replaced(), missing_images(reader.source)
        self.side = Side("train", reader, config.batch_size, self.seed, whole=True)
        self.task = make_task(self.model, tokenizer, self.folder, DEBUG_SAMPLES if args.debug else config.samples)
        self.decides = None if config.skip_val else self.task.decides
        self.epochs, self.epoch_steps = config.epochs, math.ceil(self.side.batches / (self.world * accumulate))
        self.epoch_steps = min(self.epoch_steps, config.short_epoch or self.epoch_steps)
        if args.debug:
            self.epochs, self.epoch_steps = 1, 2
        self.left = told_of_epochs(self.side, self.epoch_steps, self.world * accumulate)
        self.objective = Objective(self.model, self.task, self.epoch_steps)
        self.wandb, self.begun = WandbLog(), False
        self.loop = self._loop(accumulate, snapshot)
        refuse_finished(self.folder / "results.json", self.loop.identity)
        if args.compile:
            compile_blocks(self.model, self.fabric.device)

    def _identity(self) -> dict[str, Any]:
        """What defines the run, as JSON knows it."""
        found = {
            "task": self.task_name,
            "model": self.args.model,
            "weights": self.args.weights,
            "mask": None if self.lock is None else self.lock.mask.source | {"sparsity": self.lock.mask.sparsity()},
            "config": {key: value for key, value in asdict(self.config).items() if key not in NO_IDENTITY},
            "seed": self.seed,
            "processes": self.world,
            "precision": self.precision,
            "compile": self.args.compile or None,
            "skip_eval": getattr(self.args, "skip_eval", None) or None,
        }
        return json.loads(json.dumps(found))

    def _loop(self, accumulate: int, snapshot: Path | None) -> Loop:
        loop = Loop(
            title=f"{self.args.model} {self.task_name}",
            recipe=self.config.recipe,
            steps=self.epochs * self.epoch_steps,
            seed=self.seed,
            folder=self.folder,
            identity=self._identity(),
            accumulate=accumulate,
            rehearse=getattr(self.task, "rehearses", False),
            snapshot_seconds=self.args.snapshot_seconds,
            snapshot_steps=self.config.snapshot_steps,
            start=snapshot,
            epoch=self.epoch_steps,
        )
        loop.started.append(self._started)
        loop.after_step.append(self._step_done)
        loop.after_epoch.append(self._epoch_done)
        loop.after_log.append(lambda row: self.wandb.training(row))
        if self.lock is not None:
            loop.before_step.append(self.lock.hold)
        return loop

    def go(self) -> Metrics:
        """Train and conclude; what was logged and timed is kept however it ends."""
        done = False
        try:
            with self.clock.doing("training"):
                fit(self.fabric, self.objective, self._micro_batches, self.loop)
            result = self._conclude()
            done = True
        finally:
            self.wandb.close(failed=not done)
            if self.leads and self.begun:  # else the folder may be another run's
                self.clock.save()
        return result

    def _micro_batches(self, first: int) -> Iterator[Batch]:
        last = self.loop.steps * self.loop.accumulate * self.world
        numbers = range(first * self.world + self.fabric.global_rank, last, self.world)
        for item in load(self.side, numbers, self.workers):
            self.replaced.note(item.failed)
            yield item.batch

    # -- what the loop calls ----------------------------------------------------------------------------

    def _started(self, step: int) -> None:
        self.objective.step = step  # of a resumed run, too
        args, origin, epochs = self.args, self.loop.origin, step // self.epoch_steps
        if origin is not None:
            check_epochs(origin, epochs, self.decides)
            if self.leads:
                bring_epochs(origin.parent, self.folder, epochs)
        about = {**self.loop.identity, "mask_file": args.mask, "device": device_name(self.fabric.device)}
        self.wandb = start_wandb(self.fabric, self.folder, args.wandb, args.wdb_offline, args.experiment_name, about)
        if step == self.loop.steps and (self.folder / "results.json").is_file():
            self.clock.stand_still()
        if self.leads:
            effective = {"seed": self.seed, "precision": self.precision}
            write_settings(self.folder / "config.yaml", self.config, self.dataset, **effective)
            if step:
                left = self.loop.steps - step
                left = f"{counted(left, 'step', 'is')} left" if left else "no step is left"
                console.print(f"going on after step {step}, from {origin}: {left}")
            for notice in (self.missing, self.left, *getattr(self.task, "notices", ())):
                if notice:
                    console.print(notice)
            show_kept(self.kept, self.model)
            self.clock.save()  # a sitting counts from its start, however soon it is killed
        self.begun = True

    def _step_done(self, step: int) -> None:
        self.objective.step = step
        if self.leads:
            self.clock.save(now=False)

    def _epoch_done(self, epoch: int) -> None:
        if self.lock is not None:
            self.lock.check()
        self.model.eval()
        with self.clock.doing("evaluation"):
            early = epoch <= getattr(self.config, "start_eval", 0)
            found = {} if self.config.skip_val or early else self._evaluate("val", epoch)
        if self.leads:
            keep_epoch(self.folder, epoch, found, self.model, self.decides)
            if found:
                console.print(f"epoch {epoch}, validation: {told(found)}")
            self.clock.save()
            self.wandb.epoch(epoch, found, epoch * self.epoch_steps)
        self.fabric.barrier()

    def _evaluate(self, split: str, epoch: int | None) -> Metrics:
        return self.task.evaluate(self.model, Evaluation(self.fabric, split, epoch, self.workers))

    # -- the end ----------------------------------------------------------------------------------------

    def _conclude(self) -> Metrics:
        """Keep the last weights, test the epoch that counts, write results and pictures."""
        self.model.eval()
        if self.leads:
            write_model(self.folder / "last.safetensors", self.model, self.epochs, self.mask_inside)
        self.fabric.barrier()
        best = load_best(self.folder, self.model, self.decides)
        if self.lock is not None:
            self.lock.check()
        self.kept["after training"] = count_kept(self.model)
        with self.clock.doing("evaluation"), torch.no_grad():
            metrics = self._evaluate("test", best)
        result = self._result(metrics, best)
        if self.leads:
            write_items(self.folder / FILE, self.task.items() if hasattr(self.task, "items") else {})
            write_json(self.folder / "results.json", result)  # last, because it says that all is there
            show_kept(self.kept, self.model)
            if metrics:
                console.print(f"test: {told(metrics)}")
            if told_of := self.replaced.told():
                console.print(told_of)
            console.print(f"results: {self.folder / 'results.json'}")
            self.wandb.results(result)
            if not self.args.no_samples:
                title = f"{self.args.model} {self.task_name}, {mask_label(self.args)}"
                draw_samples(self.task, self.folder / "samples.png", title)
        return result

    def _result(self, metrics: Metrics, epoch: int | None) -> Metrics:
        device = device_name(self.fabric.device)
        return {
            "metrics": metrics,
            "epoch": epoch,
            "run": self.loop.identity,
            "mask_file": None if self.lock is None else self.args.mask,
            "kept": dict(zip(("after_loading", "after_training"), map(as_json, self.kept.values()), strict=True)),
            "seconds": self.clock.end(),
            "machine": {"device": device, "processes": self.world, "nodes": self.args.num_nodes},
            "versions": self.software,
        }
