"""The plan: a grid expanded to steps, each run once for all that need it.

Two kinds. Prune: all sparsities of a model, pruner, options and seed in one run. Task: finetuning or zero-shot
evaluation of one mask (or the dense model). Steps are named after the content of what defines them (grid/identity.py),
so the same work has the same name in every grid, and a changed configuration another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from console.errors import InputError
from grid.identity import Sources
from grid.schema import ZERO_SHOT, Grid, Row
from models import file_name
from sparsity.percents import percent
from storage.hashing import hash_json

PRUNE = "prune"
DENSE = "dense"

WITHOUT_CHANCE = ("omp", "localmp", "l2", "lamp")
"""Methods without data and without draws: one mask for every seed."""


@dataclass(frozen=True)
class Step:
    """One run. kind: prune, zero_shot, or a task with its data set. label: the row of the table it belongs to.

    sparsity: percent, 0 for dense, None of a prune step, which has all `sparsities`. chance: whether another seed
    could give another result. config: the content of its configuration file. like: equal for steps that take about
    equally long. needs: the id of the prune step whose mask it takes.
    """

    id: str
    kind: str
    model: str
    label: str
    pruner: str
    allocation: str | None
    seed: int
    chance: bool
    sparsity: float | None
    sparsities: tuple[float, ...]
    options: dict[str, Any] = field(compare=False)
    config: dict[str, Any] = field(compare=False)
    identity: dict[str, Any] = field(compare=False)
    like: str = ""
    needs: str | None = None
    debug: bool = False
    devices: int = 1

    @property
    def axes(self) -> dict[str, Any]:
        """Where the result stands in the grid."""
        return {
            "model": self.model,
            "pruner": self.label,
            "method": self.pruner,
            "allocation": self.allocation,
            "sparsity": self.sparsity,
            "task": self.kind,
            "seed": self.seed,
            "chance": self.chance,
            "options": self.options,
        }


@dataclass(frozen=True)
class Plan:
    """Steps in the order in which they are run: complete tables seed by seed."""

    grid: Grid
    steps: tuple[Step, ...]

    def by_id(self) -> dict[str, Step]:
        """id -> step."""
        return {step.id: step for step in self.steps}

    def users(self) -> dict[str, list[Step]]:
        """id of a prune step -> the steps that take its masks."""
        found: dict[str, list[Step]] = {step.id: [] for step in self.steps if step.kind == PRUNE}
        for step in self.steps:
            if step.needs is not None:
                found[step.needs].append(step)
        return found


def expand(grid: Grid, sources: Sources | None = None) -> Plan:
    """All steps of a grid, none twice; InputError where two rows are the same work."""
    sources = sources or Sources()
    steps: dict[str, Step] = {}

    def add(step: Step) -> None:
        known = steps.setdefault(step.id, step)
        if known.kind == PRUNE:  # rows that differ in their sparsities alone
            together = dict.fromkeys((*known.sparsities, *step.sparsities))
            steps[step.id] = replace(known, sparsities=tuple(together))
        elif known.label != step.label:
            raise InputError(f"{grid.path}: '{known.label}' and '{step.label}' are the same runs: leave one out")

    for seed in grid.seeds:
        for model in grid.models:
            if grid.dense:
                for task in grid.tasks[model]:
                    add(_task(grid, sources, model, task, None, None, None, seed))
            for row in grid.rows:
                prune = _prune(grid, sources, model, row, seed)
                add(prune)
                for task in grid.tasks[model]:
                    for sparsity in row.sparsities:
                        add(_task(grid, sources, model, task, row, prune, sparsity, seed))
    return Plan(grid, tuple(steps.values()))


def _prune(grid: Grid, sources: Sources, model: str, row: Row, seed: int) -> Step:
    chance = row.pruner not in WITHOUT_CHANCE
    seed = seed if chance else 0
    config, defining = sources.prune_config(grid, model, row)
    like = {
        "kind": PRUNE,
        "model": sources.model(model),
        "pruner": row.pruner,
        "allocation": row.allocation,
        "config": defining,
    }
    identity = {**like, "seed": seed, "version": sources.version}
    return Step(
        _name(PRUNE, model, row.pruner, row.allocation, None, seed, identity),
        PRUNE, model, row.label, row.pruner, row.allocation, seed, chance, None, row.sparsities,
        config["methods"].get(row.pruner, {}), config, identity, hash_json({**like, "masks": len(row.sparsities)}),
        devices=grid.devices,
    )  # fmt: skip


def _task(
    grid: Grid,
    sources: Sources,
    model: str,
    task: str,
    row: Row | None,
    prune: Step | None,
    sparsity: float | None,
    seed: int,
) -> Step:
    chance = task != ZERO_SHOT or (prune is not None and prune.chance)
    seed = seed if chance else 0
    debug = grid.debug and task != ZERO_SHOT
    config, defining = sources.task_config(grid, model, task)
    like = {"kind": task, "model": sources.model(model), "config": defining, "debug": debug}
    if grid.devices > 1 and task != ZERO_SHOT:  # they change the batch of a step, or at least the pairs it compares
        like["devices"] = grid.devices
    mask = None if prune is None else {"pruned": hash_json(prune.identity), "sparsity": sparsity}
    identity = {**like, "mask": mask, "seed": seed, "version": sources.version}
    label, pruner, allocation = (DENSE, DENSE, None) if row is None else (row.label, row.pruner, row.allocation)
    return Step(
        _name(task, model, pruner, allocation, sparsity, seed, identity),
        task, model, label, pruner, allocation, seed, chance, sparsity or 0.0, (),
        {} if prune is None else prune.options, config, identity, hash_json(like),
        None if prune is None else prune.id, debug, grid.devices,
    )  # fmt: skip


def _name(
    kind: str, model: str, pruner: str, allocation: str | None, sparsity: float | None, seed: int, identity: dict
) -> str:
    """Words for people and a hash for everything else."""
    words = [kind, file_name(model), mask_label(pruner, allocation)]
    words += [percent(sparsity / 100)] if sparsity else []
    name = "-".join([*words, f"seed{seed}", hash_json(identity)[:10]])
    return name.replace(":", "-").replace("/", "-")


def mask_label(pruner: str, allocation: str | None) -> str:
    """Pruner and allocation as they stand in file names."""
    return pruner if allocation is None else f"{pruner}-{allocation.replace(':', 'of')}"


def mask_file(step: Step, folder: Path, sparsity: float) -> Path:
    """Where `prune.py --output_dir folder` writes the mask of a prune step at a sparsity in percent."""
    label = mask_label(step.pruner, step.allocation)
    return folder / label / f"{file_name(step.model)}_{label}_{percent(sparsity / 100)}_seed{step.seed}.safetensors"
