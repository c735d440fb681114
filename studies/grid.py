"""A grid's YAML file: its axes, all checked before anything runs.

models: [xvlm-mini]
pruners: [multiflow, omp]
progressive: [platon, magnitude]         # rows that prune while finetuning
ids: [none, {xvlm-mini: ids.json}]       # intrinsic dimensions that weight layers: rows `platon + ID`
weighted: [platon]                       # of these rows (default: all whose layers compete for weights)
sparsities: [63, 75, 90]                 # percent
tasks: [retrieval, zero_shot]            # or {xvlm-mini: [...], dino-mini: [...]}; with a data set: task:set
seeds: [0, 1]
dense: true                              # also a row without a mask
random: true                             # also a row of random weights without a mask
finetune: false                          # instead of the tasks: zero-shot evaluation right after pruning
options: {itersnip: {num_batches: 50, epochs: 60}}
variants:
  multiflow-global: {pruner: multiflow, allocation: global, models: [xvlm-mini]}
  taylor-small: {pruner: shrink, options: {criterion: taylor, tower: both}}  # smaller models, options of shrink.py
  taught: {pruner: omp, teacher: {feat: 0}, overrides: {retrieval: {epochs: 2}}}  # distilled from the dense row
overrides: {retrieval: {epochs: 1}, xvlm-mini/prune: {num_batches: 8}}  # merged key by key
devices: 1                               # of each run; several change the batch of a finetuning step
debug: false                             # finetuning runs of two steps, as a trial
keep_weights: false                      # true: finetuned weights are not deleted after a run
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from configs.limits import at_least
from configs.overrides import changed
from configs.schema import library_of, model_names, parse, read_yaml, task_file
from console.errors import InputError, nearest
from studies.rows import Row, Variant, empty, in_file, rows_of, unknown, unlike
from tasks import TASKS

ZERO_SHOT = "zero_shot"
KINDS = (ZERO_SHOT, *TASKS)
"""How a mask or a smaller model can be evaluated, in the order of tables."""

OF_GRID = {"pruner", "allocation", "sparsities", "ids", "seed", "output_dir", "repair"}
"""Keys of a prune.yaml that a grid sets by itself, or does not support."""

PACKED = ".jsonl.xz"
"""Extension of a grid's packed results (results.py); their first line has the text of its YAML file."""


@dataclass(frozen=True)
class GridFile:
    """The keys of the file."""

    models: list[str]
    sparsities: list[Any]
    seeds: list[int]
    pruners: list[str] = field(default_factory=list)
    progressive: list[str] = field(default_factory=list)
    ids: list[Any] = field(default_factory=lambda: [None])  # a file, model -> file, or none
    weighted: list[str] | None = None
    tasks: Any = field(default_factory=list)
    finetune: bool = True
    dense: bool = False
    random: bool = False
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    variants: dict[str, Variant] = field(default_factory=dict)
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    debug: bool = False  # finetuning runs of two steps, as a trial
    keep_weights: bool = False  # do not delete finetuned weights after a run
    devices: int = 1


@dataclass(frozen=True)
class Grid:
    """A checked grid. tasks: model -> its tasks, with `:dataset` if one is named. notes: on settings without effect."""

    name: str
    path: str
    models: tuple[str, ...]
    rows: tuple[Row, ...]
    tasks: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    file: GridFile
    notes: tuple[str, ...] = ()


def facts(kind: str) -> Any:
    """The class of a task (`retrieval`, or with a data set) or of the zero-shot evaluation.

    It has `Config`, and for tables `words`, `main` and `metric_words` (training/task.py).
    """
    name = kind.partition(":")[0]
    if name == ZERO_SHOT:
        from evaluation.zero_shot_table import ZeroShot

        return ZeroShot
    return TASKS[name]


def taught(task: str) -> bool:
    """Whether a task, perhaps with a data set, supports distillation."""
    from tasks.loading import DISTILLED_TASKS

    return task.partition(":")[0] in DISTILLED_TASKS


def read_grid(path: Path | str, assignments: Sequence[str] = ()) -> Grid:
    """Read and check a grid, from its YAML file or its packed results, after `--set`.

    InputError for an unknown axis or value, with the nearest name.
    """
    path = Path(path)
    if not path.is_file() and not path.suffix:
        raise InputError(f"there is no grid {path}: give a YAML file, for example configs/experiments/smoke.yaml")
    where = str(path) + "".join(f" --set {assignment}" for assignment in assignments)
    return check_grid(changed(read_settings(path), assignments), grid_name(path), where)


def grid_name(path: Path) -> str:
    """The name of a grid's file, without its extension."""
    return path.name.removesuffix(PACKED) if path.name.endswith(PACKED) else path.stem


def grid_text(path: Path) -> str:
    """The text of a grid's file, from there or from its packed results; InputError where these are damaged."""
    if not path.name.endswith(PACKED):
        return path.read_text(encoding="utf-8")
    try:
        with lzma.open(path, "rt", encoding="utf-8") as file:
            return json.loads(file.readline())["yaml"]
    except (OSError, EOFError, lzma.LZMAError, ValueError, TypeError, KeyError) as error:
        raise damaged(path) from error


def read_settings(path: Path) -> dict[str, Any]:
    """The keys of a grid's file, from there or from its packed results."""
    return yaml.safe_load(grid_text(path)) or {} if path.name.endswith(PACKED) else read_yaml(path)


def damaged(path: Path) -> InputError:
    """The error on a file of results that cannot be read."""
    return InputError(f"{path} is damaged or holds no results: remove it, and `experiments.py collect` makes it again")


def check_grid(settings: dict[str, Any], name: str, where: str) -> Grid:
    """A grid from settings that were read from `where`; InputError as in `read_grid`."""
    file = parse(GridFile, settings, where)
    models = unlike(file.models, f"{where}: models")
    for model in models:
        if not library_of(model) and model not in model_names():
            raise InputError(f"{where}: {unknown('model', model, model_names())}")
    tasks = _tasks(file, models, where)
    seeds = unlike(file.seeds, f"{where}: seeds")
    if any(seed < 0 for seed in seeds):
        raise InputError(f"{where}: seeds must be 0 or more, not {min(seeds)}")
    in_file(where, at_least, file, 1, "devices")
    rows = rows_of(file, models, {task for own in tasks.values() for task in own}, where)
    finetunes = {model for model, own in tasks.items() if set(own) - {ZERO_SHOT}}
    for row in rows:
        if row.while_training and not finetunes & set(row.models):
            raise InputError(f"{where}: '{row.label}' prunes while a task is finetuned, and none is: name one in tasks")
        if row.teacher is not None and not (
            file.dense and any(taught(task) for of in row.models for task in tasks[of])
        ):
            raise InputError(
                f"{where}: '{row.label}' learns from the dense row's runs of retrieval or classification: "
                "add dense: true and such a task"
            )
    for overrides in (file.overrides, *(row.overrides for row in rows)):
        for key, own in overrides.items():
            _check_override(key, own, models, where)
    if not (models and seeds and (rows or file.dense or file.random)) or not (rows or any(tasks.values())):
        axes = (("models", models), ("seeds", seeds), ("pruners", rows), ("tasks", None))
        raise empty(where, next(axis for axis, values in axes if not values))
    return Grid(name, where, tuple(models), tuple(rows), tasks, tuple(seeds), file, _idle(file, tasks, where))


def _idle(file: GridFile, tasks: dict[str, tuple[str, ...]], where: str) -> tuple[str, ...]:
    """Notes on overrides and options of tasks and pruners that the grid does not run."""
    used = {row.pruner for row in file.variants.values()} | {*file.pruners, *file.progressive}
    unused = file.options.keys() - used
    notes = [f"{where}: options of '{name}' change nothing: it is not among the pruners" for name in unused]
    for key in file.overrides:
        model, slash, task = key.rpartition("/")
        names = [name for of in ([model] if slash else file.models) for name in tasks.get(of, ())]
        if task != "prune" and task not in {name.partition(":")[0] for name in names}:
            notes.append(f"{where}: overrides of '{key}' change nothing: it is not among the tasks")
    return tuple(sorted(notes))


def _tasks(file: GridFile, models: list[str], where: str) -> dict[str, tuple[str, ...]]:
    wanted = dict.fromkeys(models, file.tasks)
    if isinstance(file.tasks, dict):
        for model in file.tasks:
            if model not in models:
                raise InputError(
                    f"{where}: tasks are given for '{model}'{nearest(str(model), models)}, "
                    f"which is none of the grid's models: {', '.join(models)}"
                )
        wanted = {model: file.tasks.get(model, []) for model in models}
    if not file.finetune:
        wanted = {model: [ZERO_SHOT] for model in models}
    for model, tasks in wanted.items():
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise InputError(f"{where}: 'tasks' must be a list of names, or one for each model, not {tasks!r}")
        for task in unlike(tasks, f"{where}: tasks"):
            _check_task(model, task, tasks, where)
    return {model: tuple(tasks) for model, tasks in wanted.items()}


def _check_task(model: str, task: str, others: list[str], where: str) -> None:
    """InputError if the model lacks the task or the data set, or if two tasks are the same data set."""
    name, _, dataset = task.partition(":")
    if name not in KINDS:
        raise InputError(f"{where}: {unknown('task', name, KINDS)}")
    sets = read_yaml(in_file(where, task_file, model, name)).get("datasets", {})
    if dataset and dataset not in sets:
        raise InputError(
            f"{where}: unknown data set '{dataset}'{nearest(dataset, sets)} of {name}: "
            f"{model} has {', '.join(sets) or 'none'}"
        )
    if not dataset and (same := f"{task}:{next(iter(sets), None)}") in others:
        raise InputError(f"{where}: tasks: '{task}' and '{same}' are the same for {model}: leave one out")


def _check_override(key: str, own: dict[str, Any], models: list[str], where: str) -> None:
    model, slash, task = key.rpartition("/")
    known = (*KINDS, "prune")
    if task not in known:
        raise InputError(f"{where}: overrides: {unknown('task', task, known)}, or <model>/<task>")
    if slash and model not in models:
        raise InputError(f"{where}: overrides: '{model}'{nearest(model, models)} is none of the grid's models")
    for name in sorted(own.keys() & (OF_GRID if task == "prune" else {"seed"})):
        raise InputError(f"{where}: overrides of {key}: '{name}' cannot be set there: leave it out")
