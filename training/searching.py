"""The first stage of a run that searches for its mask: train the scores and newly initialised layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from data.randomness import derive_seed
from sparsity.search import Search
from training.loop import Callback, Loop, fit
from training.merge import same_everywhere
from training.optimizer import Recipe
from training.schedule import Schedule

if TYPE_CHECKING:
    from training.run import Run
    from training.task import Objective
    from training.training_data import TrainingData

FOLDER = "search"
"""Folder of the first stage, in the run's folder."""


def search(
    run: Run, objective: Objective, module: nn.Module, data: TrainingData, sparsifier: Search, also: Callback
) -> TrainingData:
    """Train the scores for their share of the epochs; returns the data of the second stage.

    Scores and prompts use Adam with L2 decay and a cosine schedule, as published; a new classifier has the recipe's
    rate. module: what the loop trains, the objective or a wrapper of it. also: the task's callback. A finished search
    is loaded from its last snapshot.
    """
    first, rest = data.split(sparsifier.config.search)
    sparsifier.started(first.steps, first.epoch_steps)
    sparsifier.begin_search(module, objective.extra_modules.parameters())
    config, rate = sparsifier.config, sparsifier.rate()
    names = [name for name, _ in sparsifier.trained(module)]
    own = {"scores.": rate} | objective.task.rates(rate) | {"model.": run.config.recipe.lr}
    snapshot = run.snapshot
    if snapshot is not None and snapshot.parent.name != FOLDER:
        snapshot = snapshot.parent / FOLDER / snapshot.name
    loop = Loop(
        title=f"{run.args.model} {run.name}, search",
        recipe=Recipe(
            lr=rate,
            optimizer="adam",
            weight_decay=config.score_decay,
            schedule=Schedule(warmup=0.0, decay="cosine", every="epoch" if first.epochs > 1 else "step"),
        ),
        steps=first.steps,
        seed=derive_seed(run.seed, FOLDER),
        folder=run.folder / FOLDER,
        identity={**run.identity(sparsifier), "stage": FOLDER},
        accumulate=first.accumulate,
        rehearse=objective.task.rehearses,
        snapshot_seconds=run.args.snapshot_seconds,
        snapshot_steps=run.config.snapshot_steps,
        start=snapshot,
        epoch=first.epoch_steps,
        sparsifier=sparsifier,
        rates={part: value for part, value in own.items() if any(part in name for name in names)},
    )

    def started(step: int) -> None:
        run.begun = True  # the folder is this run's: a snapshot, if any, belongs to it

    def after_step(step: int) -> None:
        if run.leads:
            run.clock.save(now=False)

    def after_epoch(epoch: int) -> None:
        same_everywhere(run.fabric, sparsifier.fingerprint, "mask")

    loop.callbacks += [also, Callback(started=started, after_step=after_step, after_epoch=after_epoch)]
    if run.leads:
        loop.folder.mkdir(parents=True, exist_ok=True)
    with run.clock.doing("training"):
        fit(run.fabric, module, first.micro_batches, loop)
    objective.model.eval()
    sparsifier.end_search()
    if run.leads:
        objective.task.keep(loop.folder, objective.model)
    return rest
