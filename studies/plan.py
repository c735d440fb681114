"""The plan of a grid: its steps, each run once for all steps that need it.

There are two kinds. `prune` and `shrink` make masks or smaller models: all sparsities of a model, pruner, options and
seed in one run. A task finetunes or evaluates (zero-shot) one of them or the dense model; a task that prunes while
training needs no prune step. A step that learns from a dense run also needs that run. The id of a step has a hash of
all that defines it (identity.py): the same step has the same id in every grid, and a changed configuration another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import yaml

from configs.overrides import changed
from configs.schema import parse
from console.errors import InputError
from models import RANDOM, file_name
from pruners import PRUNERS
from sparsity.percents import percent
from sparsity.progressive_config import CHOICES
from storage.hashing import hash_json
from studies.grid import ZERO_SHOT, Grid, facts, grid_text, read_grid, read_settings, taught
from studies.identity import Sources
from studies.rows import DENSE, SHRINK, UNTRAINED, Row

PRUNE = "prune"
MAKES = {PRUNE: "masks are", SHRINK: "smaller models are"}
"""Kinds of steps that make masks or smaller models -> the words of a message on missing ones."""

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One run. kind: prune, shrink, zero_shot, or a task with its data set. label: its row in the tables.

    sparsity: percent, 0 for dense, None for a step that makes all `sparsities`. chance: whether another seed could give
    another result. config: the content of its configuration file. like: equal for steps of about equal duration.
    needs: the id of the step whose mask or smaller model it uses. ids: file of intrinsic dimensions that weight layers.
    script: the task's, without .py. teacher: the id of the dense run that it learns from. losses: options of
    distillation other than the defaults. weights: initial weights other than the model's own.
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
    ids: str | None = None
    script: str = ""
    teacher: str | None = None
    losses: dict[str, Any] = field(default_factory=dict, compare=False)
    weights: str | None = None

    @property
    def makes(self) -> bool:
        """Whether it makes masks or smaller models, which other steps evaluate."""
        return self.kind in MAKES

    @property
    def before(self) -> tuple[str, ...]:
        """Ids of the steps that it needs."""
        return tuple(filter(None, (self.needs, self.teacher)))

    @property
    def while_training(self) -> bool:
        """Whether it makes its own mask while it finetunes."""
        return self.pruner in CHOICES

    @property
    def axes(self) -> dict[str, Any]:
        """The fields of `studies.results.Axes`."""
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
    """Steps in the order of running, seed by seed, so that tables of the first seeds are complete early.

    weights: model -> bytes of its weights. missing: model -> message on missing weights.
    mask_bytes: pruner -> size of a mask file as a share of the weights.
    """

    grid: Grid
    steps: tuple[Step, ...]
    weights: dict[str, int] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    mask_bytes: dict[str, float] = field(default_factory=dict)

    def by_id(self) -> dict[str, Step]:
        """id -> step."""
        return {step.id: step for step in self.steps}

    def need(self, step: Step) -> Step | None:
        """The step whose mask or smaller model a step uses."""
        return self.by_id()[step.needs] if step.needs else None

    def users(self) -> dict[str, list[Step]]:
        """id of a step that makes masks or smaller models, or is a teacher -> the steps that need it."""
        found: dict[str, list[Step]] = {step.id: [] for step in self.steps if step.makes}
        for step in self.steps:
            for name in step.before:
                found.setdefault(name, []).append(step)
        return found


def apart(work: Callable[..., T], *arguments: Any) -> T:
    """The result of `work`, computed in a process of its own.

    A plan imports the classes of pruners and tasks, and with them torch. In a process of its own, that memory is free
    again while the grid runs.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def plan_of(path: str, hashes: Path, assignments: Sequence[str] = ()) -> tuple[Plan, str]:
    """The plan of a grid after `--set`, and the text of its file with these values."""
    plan, text = expand(read_grid(path, assignments), hashes), grid_text(Path(path))
    if assignments:
        text = yaml.safe_dump(changed(read_settings(Path(path)), assignments), sort_keys=False, allow_unicode=True)
    return plan, text


def expand(grid: Grid, hashes: Path | None = None) -> Plan:
    """All steps of a grid, each once; InputError if two rows are the same runs.

    hashes: a file that caches hashes of unchanged weights.
    """
    sources = Sources(hashes)
    steps: dict[str, Step] = {}
    dense: dict[tuple[str, str, int], Step] = {}

    def add(step: Step) -> None:
        known = steps.setdefault(step.id, step)
        if known.makes:  # rows that differ in their sparsities only share a step
            together = dict.fromkeys((*known.sparsities, *step.sparsities))
            steps[step.id] = replace(known, sparsities=tuple(together))
        elif known.label != step.label:
            raise InputError(f"{grid.path}: '{known.label}' and '{step.label}' are the same runs: leave one out")

    for seed in grid.seeds:
        for model in grid.models:
            if grid.file.dense:
                for task in grid.tasks[model]:
                    dense[model, task, seed] = _task(grid, sources, model, task, None, None, None, seed)
                    add(dense[model, task, seed])
            if grid.file.random:
                for task in grid.tasks[model]:
                    add(_task(grid, sources, model, task, None, None, None, seed, weights=RANDOM))
            rows = [row for row in grid.rows if model in row.models]
            made = [None if row.while_training else _prune(grid, sources, model, row, seed) for row in rows]
            for prune in filter(None, made):  # first, so that one process can evaluate the masks of several
                add(prune)
            for row, prune in zip(rows, made, strict=True):
                for task in grid.tasks[model]:
                    if row.tasks is not None and task not in row.tasks:
                        continue
                    if task == ZERO_SHOT and (row.while_training or row.trains_otherwise):
                        continue  # no mask before finetuning, or the same zero-shot result as another row
                    if row.teacher is not None and not taught(task):
                        continue
                    teacher = dense[model, task, seed] if row.teacher is not None else None
                    for sparsity in row.sparsities:
                        add(_task(grid, sources, model, task, row, prune, sparsity, seed, teacher))
    # One bit for a weight of 32, or a copy of updated weights.
    pruners = {row.pruner for row in grid.rows if not row.while_training}
    mask_bytes = {name: 1.0 if name == SHRINK or PRUNERS[name].updates_weights else 1 / 32 for name in pruners}
    return Plan(grid, tuple(steps.values()), sources.weights, sources.missing, mask_bytes)


def check_configs(steps: list[Step], where: str) -> None:
    """InputError for the first configuration of these steps that its script would reject. where: the grid's file."""
    each = {hash_json([step.kind, step.config]): step for step in steps}
    for step in each.values():
        check_config(step.kind, step.config, f"{where}: {step.kind} of {step.model}")


def check_config(kind: str, settings: dict[str, Any], where: str) -> None:
    """InputError for an unknown key or an invalid value."""
    if "datasets" in settings:
        chosen = kind.partition(":")[2] or next(iter(settings["datasets"]))
        own = settings["datasets"][chosen]
        settings = {key: value for key, value in settings.items() if key != "datasets"} | own
    if kind in MAKES:
        from pruners.settings import PruneConfig as Config
    else:
        Config = facts(kind).Config
    parse(Config, settings, where, inner=True)


def _prune(grid: Grid, sources: Sources, model: str, row: Row, seed: int) -> Step:
    kind = PRUNE
    if row.pruner == SHRINK:
        from shrinking.series import draws

        kind, chance = SHRINK, draws(row.options)
        config, defining = sources.shrink_config(grid, model, row)
        options = row.options
    else:
        chance = row.uses_data or PRUNERS[row.pruner].draws
        config, defining = sources.prune_config(grid, model, row)
        options = config["methods"].get(row.pruner, {})
    seed = seed if chance else 0
    like = {
        "kind": kind,
        "model": sources.model(model),
        "pruner": row.pruner,
        "allocation": row.allocation,
        "config": defining,
    }
    identity = {**like, "seed": seed, "version": sources.version}
    return Step(
        _name(kind, model, _row_words(row, model), None, seed, identity),
        kind, model, row.label, row.pruner, row.allocation, seed, chance, None, row.sparsities,
        options, config, identity, hash_json({**like, "masks": len(row.sparsities)}),
        devices=grid.file.devices, ids=row.ids.get(model),
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
    teacher: Step | None = None,
    weights: str | None = None,
) -> Step:
    chance = task != ZERO_SHOT or (prune is not None and prune.chance)
    seed = seed if chance else 0
    debug, devices = grid.file.debug and task != ZERO_SHOT, grid.file.devices
    config, defining = sources.task_config(grid, model, task, row)
    like = {"kind": task, "model": sources.model(model), "config": defining, "debug": debug}
    if devices > 1 and task != ZERO_SHOT:  # devices change the batch of a step, or at least the pairs it compares
        like["devices"] = devices
    losses: dict[str, Any] = {}
    own: dict[str, Any] = {}
    if row is not None and row.trains_otherwise:
        # Without this, a row with its own configuration would not be in one table with the others.
        own["among"] = hash_json(like | {"config": sources.task_config(grid, model, task, None)[1]})
    if teacher is not None:
        losses = {name: value for name, value in asdict(row.teacher).items() if value is not None}
        like["teacher"] = losses
        own["taught_by"] = hash_json(teacher.identity)
    if weights is not None:
        own["weights"] = weights
    mask = None if prune is None else {"pruned": hash_json(prune.identity), "sparsity": sparsity}
    identity = {**like, **own, "mask": mask, "seed": seed, "version": sources.version}
    unpruned = DENSE if weights is None else UNTRAINED
    label, pruner, allocation = (unpruned, DENSE, None) if row is None else (row.label, row.pruner, row.allocation)
    options, ids = {} if prune is None else prune.options, None if row is None else row.ids.get(model)
    if row is not None and row.while_training:
        # Not in `like`: all rows of a task train for the same steps, and are in one table.
        options, telling = sources.progressive(grid, model, task, row)
        config = {**config, "progressive": options} if options else config
        identity["progressive"] = telling | {"sparsity": sparsity}
    return Step(
        _name(task, model, unpruned.split()[0] if row is None else _row_words(row, model), sparsity, seed, identity),
        task, model, label, pruner, allocation, seed, chance, sparsity or 0.0, (),
        options, config, identity, hash_json(like),
        None if prune is None else prune.id, debug, devices, ids, facts(task).script or task.partition(":")[0],
        None if teacher is None else teacher.id, losses, weights,
    )  # fmt: skip


def _name(kind: str, model: str, label: str, sparsity: float | None, seed: int, identity: dict[str, Any]) -> str:
    """The id of a step: readable words, and a hash of its identity."""
    words = [kind, file_name(model), label]
    words += [percent(sparsity / 100)] if sparsity else []
    name = "-".join([*words, f"seed{seed}", hash_json(identity)[:10]])
    return name.replace(":", "-").replace("/", "-")


def _row_words(row: Row, model: str) -> str:
    """The words for a row in the ids of its steps."""
    if row.pruner == SHRINK:
        return str(row.options.get("criterion", "mope"))
    return mask_label(row.pruner, row.allocation, row.ids.get(model))


def mask_label(pruner: str, allocation: str | None, ids: str | None) -> str:
    """Pruner, allocation and `id` (layers weighted by intrinsic dimensions), as in the names of mask files."""
    parts = [pruner, *([] if allocation is None else [allocation.replace(":", "of")]), *(["id"] if ids else [])]
    return "-".join(parts)
