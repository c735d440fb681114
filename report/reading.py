"""Read the results of grids: whole files, of one version, of one configuration each; what is left out is said.

A folder is results/<grid>, with <run>/result.json in it, or results/ itself with all its grids.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

from configs.schema import read_yaml
from console.errors import InputError, nearest
from console.words import agreed, counted
from grid.places import short
from grid.results import FORMAT, read_result
from grid.steps import DENSE, PRUNE
from grid.version import tell, version
from pruners import PRUNERS
from report.metrics import ORDER, flat, without_number
from sparsity.percents import percent
from storage.hashing import hash_json

AXES = ("model", "pruner", "sparsity", "task", "seed")

NUMBER = (int, float, NoneType)
KINDS: dict[str, type | tuple[type, ...]] = {
    "id": str, "metrics": dict, "version": dict, "like": str, "axes": dict, "items": (str, NoneType),
    "pruned_by": (str, NoneType), "defined_by": (dict, NoneType), "layers": (dict, NoneType),
    "seconds": NUMBER, "cpu_seconds": NUMBER, "peak_memory_gb": NUMBER, "weights_in_matrices": NUMBER,
}  # fmt: skip
"""What the values of a result are; those that may be None may be missing, too."""

AXIS_KINDS = {"model": str, "pruner": str, "task": str, "seed": int}


@dataclass(frozen=True)
class Run:
    """A result. task: PRUNE for a pruning. sparsity: percent, 0 for dense. chance: another seed may give another
    result. recipe: of the masks, whatever the seed; None where it is not known.
    """

    id: str
    model: str
    pruner: str
    method: str
    sparsity: float
    task: str
    seed: int
    chance: bool
    metrics: dict[str, float]
    path: Path
    result: dict[str, Any]
    recipe: str | None = None

    @property
    def items(self) -> Path | None:
        """The file with scores of single test items, if the run left one."""
        name = self.result.get("items")
        return self.path.with_name(name) if name else None


@dataclass(frozen=True)
class Results:
    """tasks: runs of tasks. prunings: runs of prune.py. notes: sentences on what was left out. order: of pruners.

    planned: (model, task) -> seeds that the grids ask for.
    """

    folders: tuple[Path, ...]
    tasks: tuple[Run, ...]
    prunings: tuple[Run, ...]
    notes: tuple[str, ...]
    order: tuple[str, ...] = ()
    models: tuple[str, ...] = field(default=())
    planned: dict[tuple[str, str], set[int]] = field(default_factory=dict)

    def prunable(self, model: str) -> tuple[int, int] | None:
        """How many weights of a model can be pruned, and how many it has in matrices; None where no pruning says it."""
        for run in self.prunings:
            layers = next(iter((run.result.get("layers") or {}).values()), None)
            if run.model == model and layers and (whole := run.result.get("weights_in_matrices")):
                return sum(size for of in layers.values() for _, size in of.values()), int(whole)
        return None

    def prunings_of(self, model: str, pruner: str) -> list[Run]:
        """Those that made a pruner's masks; rows that differ in their sparsities alone share one."""
        used = {run.result.get("pruned_by") for run in self.tasks if (run.model, run.pruner) == (model, pruner)}
        return [run for run in self.prunings if run.model == model and (run.pruner == pruner or run.id in used)]


def read_results(given: Sequence[str], results: Path, only: Sequence[str] = ()) -> Results:
    """The results of some grids or folders.

    given: YAML files of grids, whose results are in `results`, or folders. only: selections such as `pruner=omp,snip`.
    InputError where there are none, one is half-written, or a selection names what there is not.
    """
    folders, orders = [], []
    for name in given:
        path = Path(name)
        if path.suffix in (".yaml", ".yml"):
            orders.append(read_yaml(path))
            path = results / path.stem
        folders.append(path)
    runs: dict[str, Run] = {}
    for folder in folders:
        for file in result_files(folder):
            run = read_run(file)
            runs[run.id] = together(runs[run.id], run) if run.id in runs else run
        orders += [read_yaml(copy) for copy in sorted([*folder.glob("*.yaml"), *folder.glob("*/*.yaml")])]
    kept, notes = one_version(list(runs.values()))
    kept = [replace(run, recipe=_recipe(run, runs)) for run in kept]
    kept, more = one_recipe(kept)
    kept = _selected(kept, only)
    tasks = tuple(run for run in kept if run.task != PRUNE)
    for run in tasks:
        if not run.metrics:
            more.append(f"{run.id} has no number")
        if names := without_number(run.result["metrics"]):
            more.append(f"{run.id}: {', '.join(names)} is no number")
    if not tasks:
        raise InputError(f"{short(folders[0])} holds no result of a task yet, only prunings: run the grid further")
    if tried := sum(bool((run.result.get("defined_by") or {}).get("debug")) for run in tasks):
        more = [f"{tried} of these results are of trial runs of two steps (debug): their numbers mean nothing", *more]
    pruners = [name for grid in orders for key in ("pruners", "variants") for name in grid.get(key) or ()]
    models = [name for grid in orders for name in grid.get("models") or ()]
    return Results(
        tuple(folders),
        tasks,
        tuple(run for run in kept if run.task == PRUNE),
        (*notes, *more),
        tuple(ordered({run.pruner for run in kept if run.pruner != DENSE}, pruners, PRUNERS)),
        tuple(ordered({run.model for run in tasks}, models)),
        planned_seeds(orders, only),
    )


def together(one: Run, other: Run) -> Run:
    """A run that several grids have: of a pruning, each has the sparsities that it asked for."""
    if one.task != PRUNE:
        return one
    parts = {key: {**(other.result.get(key) or {}), **(one.result.get(key) or {})} for key in ("metrics", "layers")}
    return replace(one, metrics=flat(parts["metrics"]), result=one.result | parts)


def planned_seeds(grids: Iterable[dict[str, Any]], only: Sequence[str] = ()) -> dict[tuple[str, str], set[int]]:
    """(model, task) -> seeds that some grid asks for, of those that a selection leaves."""
    left = [set(word.partition("=")[2].split(",")) for word in only if word.startswith("seed=")]
    found: dict[tuple[str, str], set[int]] = {}
    for grid in grids:
        tasks = grid.get("tasks") or []
        seeds = {seed for seed in grid.get("seeds") or () if all(str(seed) in names for names in left)}
        for model in grid.get("models") or ():
            own = tasks.get(model) if isinstance(tasks, dict) else tasks
            for task in (own or ()) if grid.get("finetune", True) else ("zero_shot",):
                found.setdefault((model, task), set()).update(seeds)
    return found


def result_files(folder: Path) -> list[Path]:
    """The result files of a grid, or of all grids in a folder; InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give a grid's YAML file, or the folder of its results")
    files = sorted(folder.glob("*/result.json")) or sorted(folder.glob("*/*/result.json"))
    if not files:
        raise InputError(f"{folder} holds no results: run the grid first (python experiments.py run GRID)")
    return files


def read_run(path: Path) -> Run:
    """One result; InputError where it is half of one, or not what a grid writes."""
    result = read_result(path)
    if result is None:
        raise InputError(
            f"{path} is half-written or no result: remove it, and `experiments.py run` or `collect` makes it again"
        )
    if result["format"] != FORMAT:
        raise InputError(f"{path} is of format {result['format']}, and this version reads {FORMAT}: update the toolkit")
    if wrong := _wrong_key(result):
        raise InputError(
            f"{path}: '{wrong}' is not as a grid writes it: remove the file, and `experiments.py run` or `collect` "
            "makes it again"
        )
    axes = result["axes"]
    return Run(
        result["id"], axes["model"], axes["pruner"], axes.get("method") or axes["pruner"],
        float(axes.get("sparsity") or 0), axes["task"], axes["seed"], bool(axes.get("chance", True)),
        flat(result["metrics"]), path, result,
    )  # fmt: skip


def _wrong_key(result: dict[str, Any]) -> str | None:
    """The first key of a result whose value is none that a grid writes."""
    for key, kind in KINDS.items():
        if not isinstance(result.get(key), kind) or isinstance(result.get(key), bool):
            return key
    axes = result["axes"]
    for key, kind in AXIS_KINDS.items():
        if not isinstance(axes.get(key), kind) or isinstance(axes.get(key), bool):
            return f"axes: {key}"
    sparsity = axes.get("sparsity") or 0
    if not isinstance(sparsity, int | float) or not 0 <= sparsity <= 100:
        return "axes: sparsity"
    if result.get("items") and Path(result["items"]).name != result["items"]:
        return "items"
    if not all(isinstance(value, str) for value in result["version"].values()):
        return "version"
    layers = (result.get("layers") or {}).values()
    return None if all(isinstance(of, dict) for of in layers) else "layers"


def one_version(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """The runs of today's version, or where there is none of the newest one; and a sentence on each other version."""
    by_version: dict[str, list[Run]] = {}
    for run in runs:
        by_version.setdefault(json.dumps(run.result["version"], sort_keys=True), []).append(run)
    today = json.dumps(version(), sort_keys=True)
    newest = max(by_version, key=lambda key: max(map(_finished, by_version[key])))
    chosen = today if today in by_version else newest
    notes = [
        f"{counted(len(others), 'result')} of another version ({tell(others[0].result['version'])}) "
        f"{agreed(len(others), 'is')} left out"
        for key, others in by_version.items()
        if key != chosen
    ]
    if chosen != today:
        told = tell(by_version[chosen][0].result["version"])
        notes.insert(0, f"these results were made with another version than today's ({told})")
    return by_version[chosen], notes


def one_recipe(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Runs that can stand in one table: a task configured in one way for all pruners, a pruner's masks made in one way
    for all tasks, one result for each place. Of several, that of most results stays, and a sentence says so.
    """
    notes: list[str] = []

    def keep(group: Callable[[Run], Any], kind: Callable[[Run], str | None], what: str, those: list[Run]) -> list[Run]:
        found: dict[Any, Counter[str]] = {}
        newest: dict[tuple[Any, str], str] = {}
        for run in those:
            if (name := kind(run)) is not None:
                found.setdefault(group(run), Counter())[name] += 1
                newest[group(run), name] = max(_finished(run), newest.get((group(run), name), ""))
        best = {at: max(kinds, key=lambda k: (kinds[k], newest[at, k])) for at, kinds in found.items()}
        for at, kinds in found.items():
            if others := kinds.total() - kinds[best[at]]:
                notes.append(
                    f"{counted(others, 'result')} of {' '.join(map(str, at))} {what} {agreed(others, 'is')} left out"
                )
        return [run for run in those if kind(run) in (None, best.get(group(run)))]

    tasks = [run for run in runs if run.task != PRUNE]
    tasks = keep(lambda run: (run.model, run.task), lambda run: run.result["like"], "with another configuration", tasks)
    both = [run for run in runs if run.task == PRUNE] + tasks
    both = keep(lambda run: (run.model, run.pruner), lambda run: run.recipe, "pruned in another way", both)
    places: dict[tuple[Any, ...], Run] = {}
    for run in sorted(both, key=_finished):  # the newest stays
        places[run.model, run.pruner, run.sparsity, run.task, run.seed] = run
    if twice := len(both) - len(places):
        notes.append(f"{counted(twice, 'result', 'is')} there twice with different ids: the newest of each is taken")
    return list(places.values()), notes


def ordered(names: Iterable[str], *preferences: Iterable[str]) -> list[str]:
    """Names in the order of the first preference that has them, the rest by the alphabet."""
    ranks: dict[str, int] = {}
    for name in (name for preference in preferences for name in preference):
        ranks.setdefault(name, len(ranks))
    return sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name))


def tasks_ordered(tasks: Iterable[str]) -> list[str]:
    """Tasks as the reader expects them; data sets of one task beside each other."""
    known = {name: number for number, name in enumerate(ORDER)}
    return sorted(tasks, key=lambda task: (known.get(task.partition(":")[0], len(known)), task))


def _selected(runs: list[Run], only: Sequence[str]) -> list[Run]:
    for word in only:
        axis, sign, text = word.partition("=")
        if not sign or axis not in AXES:
            raise InputError(
                f"--only takes AXIS=VALUE,VALUE, not '{word}'{nearest(axis, AXES)}: the axes are {', '.join(AXES)}"
            )
        known = {_value(run, axis) for run in runs if run.task != PRUNE or axis not in ("task", "sparsity")}
        wanted = set(text.split(","))
        for value in sorted(wanted - known):
            raise InputError(
                f"--only: unknown {axis} '{value}'{nearest(value, known)}: these results have "
                f"{', '.join(sorted(known))}"
            )
        runs = [run for run in runs if _stays(run, axis, wanted)]
    return runs


def _stays(run: Run, axis: str, wanted: set[str]) -> bool:
    """Dense rows and prunings stay where the selection says nothing of them, and runs that no seed changes."""
    if axis in ("sparsity", "pruner") and run.pruner == DENSE:
        return True
    if axis in ("sparsity", "task") and run.task == PRUNE:
        return True
    return _value(run, axis) in wanted or (axis == "seed" and not run.chance)


def _value(run: Run, axis: str) -> str:
    return percent(run.sparsity / 100) if axis == "sparsity" else str(getattr(run, axis))


def _recipe(run: Run, runs: dict[str, Run]) -> str | None:
    made = run if run.task == PRUNE else runs.get(run.result.get("pruned_by") or "")
    defined = made.result.get("defined_by") if made else None
    if not isinstance(defined, dict):
        return None
    return hash_json({key: value for key, value in defined.items() if key != "seed"})


def _finished(run: Run) -> str:
    return str(run.result.get("finished") or "")
