"""Finetuning: data, epochs with an evaluation after each, the best and the last weights, results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from console.errors import InputError
from console.progress import console
from console.words import counted
from data.tokenizer import Tokenizer, load_tokenizer
from evaluation.items import FILE, write_items
from models import load_task_model
from models.base import Model
from models.plans import plan_identity
from sparsity.mask import Mask
from sparsity.picture import draw_progress
from sparsity.search import Search
from sparsity.sparsifiers import Fixed, Sparsifier
from storage.atomic import write_json
from training.compiling import compile_blocks
from training.distillation import with_teacher
from training.epoch_weights import BEST, Metrics, check_epochs, copy_epochs, keep_epoch, load_best, write_model
from training.evaluating import Evaluation
from training.kept import as_json, count_kept, show_kept
from training.logging_wandb import start_wandb
from training.loop import Callback, Loop, fit
from training.merge import same_everywhere
from training.results import device_name, metrics_line, refuse_finished, write_settings
from training.run import Run, chosen_sparsifier, open_run, run_label, sparsify
from training.samples import draw_samples
from training.searching import FOLDER, search
from training.smaller import write_small
from training.task import Finetuning, Objective, Task
from training.training_data import TrainingData

MASK = "mask.safetensors"
"""File of the mask that a run made, in its folder."""


def run_task(
    args: argparse.Namespace,
    config: Finetuning,
    name: str,
    make: Callable[[Model, Tokenizer, Run], Task],
    *,
    model_of: str | None = None,
    variant: str = "",
    dataset: str = "",
    inside: bool = False,
) -> None:
    """A task's run from its command line to its results: every task's script ends with this call.

    make: the task, for a model, its tokenizer and the open run. model_of: the task whose model is trained, if another.
    variant, dataset: as in `open_run`. inside: as in `fit_task`.
    """
    with open_run(args, config, name, variant, dataset) as run:  # folder, lock, seed, processes
        sparsifier = chosen_sparsifier(run)  # dense, under a mask, or pruning while training
        model = load_task_model(args.model, model_of or name, weights=args.weights, overrides=config.model)
        sparsify(run, model, sparsifier)
        tokenizer = load_tokenizer(model.tokenizer)
        task = make(model, tokenizer, run)
        data = None if args.evaluate else TrainingData(run, model, tokenizer)
        epoch = fit_task(run, model, task, data, sparsifier, inside) if data else None
        conclude(run, model, task, sparsifier, epoch, data)


def fit_task(
    run: Run,
    model: nn.Module,
    task: Task,
    data: TrainingData,
    sparsifier: Sparsifier,
    inside: bool = False,
) -> int | None:
    """Train, and load the weights of the selected epoch into the model; returns its number (None: the last).

    inside: store the mask in the last weights, for a task that starts from them.
    """
    decides = None if run.config.skip_val else task.decides
    objective = Objective(model, task, data.epoch_steps)
    also = task_parts(run, objective)
    module = with_teacher(run, objective)
    identity = run.identity(sparsifier)
    refuse_finished(run.folder / "results.json", identity)
    notices = [*data.notices, *task.notices]
    if isinstance(sparsifier, Search):
        data = search(run, objective, module, data, sparsifier, also)
        run.before = before_training(run, model, task)
    start = run.snapshot if run.snapshot is None or run.snapshot.parent.name != FOLDER else None
    loop = Loop(
        title=f"{run.args.model} {run.name}",
        recipe=run.config.recipe,
        steps=data.steps,
        seed=run.seed,
        folder=run.folder,
        identity=identity,
        accumulate=data.accumulate,
        rehearse=task.rehearses,
        snapshot_seconds=run.args.snapshot_seconds,
        snapshot_steps=run.config.snapshot_steps,
        start=start,
        epoch=data.epoch_steps,
        sparsifier=sparsifier,
        rates=task.rates(),
    )
    loop.callbacks += [also, Epochs(run, loop, objective, sparsifier, decides, notices)]
    sparsifier.started(data.steps, data.epoch_steps)
    if run.args.compile:
        compile_blocks(model, run.fabric.device)
    with run.clock.doing("training"):
        fit(run.fabric, module, data.micro_batches, loop)
    model.eval()
    sparsifier.check()
    made = sparsifier.finish()
    if run.leads:
        mask = sparsifier.mask if inside else made
        write_model(run.folder / "last.safetensors", model, data.epochs, mask)
        task.keep(run.folder, model)
    run.fabric.barrier()
    best = load_best(run.folder, model, decides)
    if made is not None:
        keep_mask(run, model, sparsifier, made if best is None else Mask.load(run.folder / BEST))
        if isinstance(sparsifier, Search) and sparsifier.config.structured:
            run.small = write_small(run, model, task, sparsifier.config.sparsity)
    run.kept["after training"] = count_kept(model)
    return best


def keep_mask(run: Run, model: nn.Module, sparsifier: Sparsifier, mask: Mask) -> None:
    """Save the mask that a run made, after checking the selected weights against it; draw its progress."""
    mask.source |= {"model": run.args.model, "run": str(run.folder), "task": run.name, "seed": run.seed}
    mask.source |= plan_identity(model.plan)
    lock = Fixed(mask)
    lock.attach(model)
    lock.check()
    if run.leads:
        mask.save(run.folder / MASK)
        if not run.args.no_samples:
            draw_progress(sparsifier.history, mask, run.folder / "progress.png", f"{run.args.model} {run.name}")


def before_training(run: Run, model: nn.Module, task: Task) -> Metrics:
    """Evaluate the result of a search before the weights are trained, if the task does; a resumed run reads it."""
    if not task.tells_search or run.config.skip_val:
        return {}
    path = run.folder / FOLDER / "results.json"
    found = run.fabric.broadcast(json.loads(path.read_text()) if path.is_file() else None)
    if found is None:
        found = evaluate(run, model, task, "test", None)
        if run.leads:
            write_json(path, found)
            console.print(f"after the search, before training: {metrics_line(found)}")
    return {f"search_{name}": value for name, value in found.items()}


def task_parts(run: Run, objective: Objective) -> Callback:
    """The callbacks of a task, with its state in snapshots, and the objective's step."""
    task, model = objective.task, objective.model
    look = Evaluation(run.fabric, "train", None, run.workers)

    def started(step: int) -> None:
        objective.step = step  # also of a resumed run
        task.begin(model, look)

    def after_step(step: int) -> None:
        objective.step = step

    parts = Callback(
        started=started,
        after_backward=task.after_backward,
        after_step=after_step,
        after_epoch=lambda epoch: task.end_epoch(model, look),
        state_dict=task.state_dict,
        load_state_dict=task.load_state_dict,
    )
    parts.name = "task"
    return parts


class Epochs(Callback):
    """Prepares the folder once its snapshot is validated, evaluates each epoch, saves the best weights and the time."""

    def __init__(
        self,
        run: Run,
        loop: Loop,
        objective: Objective,
        sparsifier: Sparsifier,
        decides: str | None,
        notices: Sequence[str],
    ):
        """notices: printed when training starts; empty ones are skipped."""
        super().__init__()
        self._run, self._loop, self._objective, self._sparsifier = run, loop, objective, sparsifier
        self._decides, self._notices = decides, notices

    def started(self, step: int) -> None:
        """Copy the results of earlier epochs, and start the logs."""
        run, loop = self._run, self._loop
        if (origin := loop.origin) is not None:
            check_epochs(origin, step // loop.epoch, self._decides)
            if run.leads:
                copy_epochs(origin.parent, run.folder, step // loop.epoch)
        args = run.args
        about = {**loop.identity, "mask_file": args.mask, "device": device_name(run.fabric.device)}
        run.wandb = start_wandb(run.fabric, run.folder, args.wandb, args.wdb_offline, args.experiment_name, about)
        if step == loop.steps and (run.folder / "results.json").is_file():
            run.clock.stop_counting()
        if run.leads:
            if step:
                left = f"{counted(loop.steps - step, 'step', 'is')} left" if loop.steps > step else "no step is left"
                console.print(f"resuming after step {step}, from {origin}: {left}")
            write_settings(run.folder / "config.yaml", run.config, run.dataset, seed=run.seed, precision=run.precision)
            for notice in filter(None, self._notices):
                console.print(notice)
            show_kept(run.kept, self._objective.model)
            run.clock.save()  # saved at the start, so that an early kill does not lose the time
        run.begun = True

    def after_step(self, step: int) -> None:
        """Save the time regularly."""
        if self._run.leads:
            self._run.clock.save(now=False)

    def after_log(self, row: dict[str, Any]) -> None:
        """Losses go to Weights & Biases, too."""
        self._run.wandb.training(row)

    def after_epoch(self, epoch: int) -> None:
        """Evaluate the validation split, and save the epoch's weights if they are the best."""
        run, model = self._run, self._objective.model
        self._sparsifier.check()
        model.eval()
        early = epoch <= run.config.start_eval and epoch * self._loop.epoch < self._loop.steps  # never the last
        skip = run.config.skip_val or early
        found = {} if skip else evaluate(run, model, self._objective.task, "val", epoch)
        step, sparsifier = epoch * self._loop.epoch, self._sparsifier
        same_everywhere(run.fabric, sparsifier.fingerprint, "mask")
        if run.leads:
            mask = sparsifier.mask if sparsifier.makes_mask else None
            line = found | ({"kept": as_json(count_kept(model))} if sparsifier.makes_mask else {})
            keep_epoch(run.folder, epoch, line, model, self._decides, mask, sparsifier.settled(step))
            if found:
                split = "validation" if self._objective.task.validates else "test"
                console.print(f"epoch {epoch}, {split}: {metrics_line(found)}")
            run.clock.save()
            run.wandb.epoch(epoch, found, epoch * self._loop.epoch)
        run.fabric.barrier()


def evaluate(run: Run, model: nn.Module, task: Task, split: str, epoch: int | None) -> Metrics:
    """A task's metrics on a split, equal on every process. epoch: of the weights (None: the last)."""
    task.split = split
    with run.clock.doing("evaluation"), torch.no_grad():
        return task.evaluate(model, Evaluation(run.fabric, split, epoch, run.workers))


def conclude(
    run: Run,
    model: nn.Module,
    task: Task,
    sparsifier: Sparsifier,
    epoch: int | None = None,
    data: TrainingData | None = None,
) -> Metrics:
    """Evaluate the test split (with --evaluate, the chosen split); write results, items and pictures.

    epoch: of the model's weights (None: the last). Returns the content of results.json.
    """
    args, split = run.args, run.args.split or "test"
    if split == "val" and not task.validates:
        raise InputError(
            f"{run.name} has no validation split, its configuration names test data only: leave --split out"
        )
    if data is None:
        refuse_finished(run.folder / "results.json", run.identity(sparsifier))
        run.fabric.to_device(model)
        model.eval()
        run.begun = True
    metrics = evaluate(run, model, task, split, epoch) | run.before
    result = {
        "metrics": metrics,
        "epoch": epoch,
        "run": run.identity(sparsifier),
        "mask_file": str(run.folder / MASK) if sparsifier.makes_mask else args.mask if sparsifier.mask else None,
        "kept": dict(zip(("after_loading", "after_training"), map(as_json, run.kept.values()), strict=False)),
        **sparsifier.results(),
        **({"small": run.small} if run.small else {}),
        "seconds": run.clock.end(),
        "machine": {"device": device_name(run.fabric.device), "processes": run.world, "nodes": args.num_nodes},
        "versions": run.software,
    }
    if run.leads:
        write_items(run.folder / FILE, task.items())
        write_json(run.folder / "results.json", result)  # last, since it marks the run as finished
        show_kept(run.kept, model)
        if metrics:
            console.print(f"{split}: {metrics_line(metrics)}")
        if data is not None and (replaced := data.replaced.summary()):
            console.print(replaced)
        console.print(f"results: {run.folder / 'results.json'}")
        run.wandb.results(result)
        if not args.no_samples:
            draw_samples(task, run.folder / "samples.png", f"{args.model} {run.name}, {run_label(args, run.config)}")
    return result
