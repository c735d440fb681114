"""Read the results of grids: those of one version and one configuration per task; notes report what is left out."""

from __future__ import annotations

import json
import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.schema import parse
from console.errors import InputError, nearest
from console.words import agreed, counted
from pruners import PRUNERS
from sparsity.percents import percent
from sparsity.progressive_config import CHOICES
from storage.hashing import hash_json
from studies.grid import PACKED, ZERO_SHOT, grid_name, read_settings
from studies.harnesses import runs_of_tools
from studies.metrics import flat, without_number
from studies.places import Places, short
from studies.plan import PRUNE
from studies.results import FORMAT, Record, Result, all_records, joined
from studies.rows import UNPRUNED, row_labels
from studies.run import Run
from studies.version import difference, version

AXES = ("model", "pruner", "sparsity", "task", "seed")


@dataclass(frozen=True)
class Results:
    """tasks: runs of tasks. prunings: runs of prune.py or shrink.py. notes: on what was left out. order: of pruners.

    planned: (model, task) -> seeds that the grids request.
    """

    places: tuple[Places, ...]
    tasks: tuple[Run, ...]
    prunings: tuple[Run, ...]
    notes: tuple[str, ...]
    order: tuple[str, ...] = ()
    models: tuple[str, ...] = field(default=())
    planned: dict[tuple[str, str], set[int]] = field(default_factory=dict)

    def prunable(self, model: str) -> tuple[int, int] | None:
        """Numbers of a model's prunable weights, and of its weights in matrices; None if no pruning recorded them."""
        for run in self.prunings:
            layers = next(iter(run.result.layers.values()), None)
            if run.model == model and layers and (whole := run.result.weights_in_matrices):
                return sum(size for of in layers.values() for _, size in of.values()), whole
        return None

    def kept(self, model: str, pruner: str, sparsity: float, task: str | None = None) -> dict[str, float]:
        """Modality -> share of the task model's prunable weights kept, mean over runs; empty if not recorded.

        task: None for all.
        """
        found: dict[str, list[float]] = {}
        for run in self.tasks:
            if (run.model, run.pruner, run.sparsity) == (model, pruner, sparsity) and task in (None, run.task):
                for modality, (left, size) in run.result.kept.items():
                    found.setdefault(modality, []).append(left / size)
        return {modality: statistics.fmean(shares) for modality, shares in found.items()}

    def prunings_of(self, model: str, pruner: str) -> list[Run]:
        """The prunings that made a pruner's masks; rows that differ only in their sparsities share one."""
        used = {run.result.pruned_by for run in self.tasks if (run.model, run.pruner) == (model, pruner)}
        return [run for run in self.prunings if run.model == model and (run.pruner == pruner or run.id in used)]


def read_results(given: Sequence[str], results: Path, work: Path, only: Sequence[str] = ()) -> Results:
    """The results of some grids.

    given: YAML files of grids, whose results are in `results`; packed results or folders of these; folders to which
    other tools wrote. work: the folder of single results. only: selections such as `pruner=omp,snip`.
    InputError if there are none, one is damaged, or a selection has an unknown name.
    """
    folders = [Path(name) for name in given if Path(name).is_dir() and not _packs(Path(name))]
    places = [place for name in given if Path(name) not in folders for place in _places(Path(name), results, work)]
    grids = [read_settings(Path(name)) for name in given if Path(name).suffix in (".yaml", ".yml")]
    grids += [read_settings(place.pack) for place in places if place.pack.is_file()]
    runs: dict[str, Run] = {}
    for place in places:
        found = [read_run(record, place) for record in all_records(place)]
        if not found:
            raise InputError(f"{place.pack} holds no results: run the grid first (python experiments.py run GRID)")
        for run in found:
            runs[run.id] = together(runs[run.id], run) if run.id in runs else run
    kept, notes = one_version(list(runs.values())) if runs else ([], [])
    kept = [replace(run, recipe=_recipe(run, runs)) for run in kept]
    kept, more = one_recipe(kept)
    for folder in folders:
        found, found_notes = runs_of_tools(folder)
        if not found:
            raise InputError(
                f"there are no results {folder}: give a grid's YAML file, its packed results or their folder, or the "
                "output folder of another tool"
            )
        places.append(Places(folder.parent, work, folder.name))
        ours = {run.model.rpartition("/")[2].removeprefix("hf:"): run.model for run in kept}
        here = [replace(run, model=ours.get(run.model.removeprefix("hf:"), run.model)) for run in found]
        kept = list({run.id: run for run in (*kept, *here)}.values())  # of the same run in two folders, the last
        more += found_notes
    kept = _selected(kept, only)
    tasks = tuple(run for run in kept if run.task != PRUNE)
    for run in tasks:
        if not run.metrics:
            more.append(f"{run.id} has no metric")
        if names := without_number(run.result.metrics):
            more.append(f"{run.id}: {', '.join(names)} is not a finite number")
    if not tasks:
        raise InputError(f"{short(places[0].pack)} holds no result of a task yet, only prunings: run the grid further")
    if tried := sum(bool(run.result.defined_by.get("debug")) for run in tasks):
        more = [f"{tried} of these results are trials of two steps (debug): their numbers are meaningless", *more]
    pruners = [label for grid in grids for label in row_labels(grid)]
    models = [name for grid in grids for name in grid.get("models") or ()]
    return Results(
        tuple(places),
        tasks,
        tuple(run for run in kept if run.task == PRUNE),
        (*notes, *more),
        tuple(ordered({run.pruner for run in kept if run.pruner not in UNPRUNED}, pruners, PRUNERS, CHOICES)),
        tuple(ordered({run.model for run in tasks}, models)),
        planned_seeds(grids, only),
    )


def _places(path: Path, results: Path, work: Path) -> list[Places]:
    """The places of the results `path`; `results/mini` is short for its packed file."""
    if path.suffix in (".yaml", ".yml"):
        return [Places(results, work, path.stem)]
    if not (packs := _packs(path)):
        raise InputError(f"there are no results {path}: give a grid's YAML file, its packed results or their folder")
    return [Places(pack.parent, work, grid_name(pack)) for pack in packs]


def _packs(path: Path) -> list[Path]:
    """The packed files of a path."""
    packed = path if path.name.endswith(PACKED) else Path(f"{path}{PACKED}")
    return [packed] if packed.is_file() else sorted(path.glob(f"*{PACKED}"))


def read_run(record: Record, place: Places) -> Run:
    """One result; InputError if it is invalid or of another format."""
    result = record.result
    where = f"{short(place.pack)}: {result.get('id')}"
    if result.get("format") != FORMAT:
        raise InputError(f"{where} is of format {result.get('format')}, and this version reads {FORMAT}: update it")
    found = parse(Result, result, where)
    axes, metrics = found.axes, flat(found.metrics)
    if not 0 <= (axes.sparsity or 0) <= 100:
        raise InputError(f"{where}: 'sparsity' must be a percentage, not {axes.sparsity}")
    return Run(
        found.id, axes.model, axes.pruner, axes.method, axes.sparsity or 0.0,
        PRUNE if found.kind == PRUNE else axes.task, axes.seed, axes.chance, metrics, found,
        zlib.compress(record.items.encode(), 1) if record.items else b"",
    )  # fmt: skip


def together(one: Run, other: Run) -> Run:
    """Merge the results of a run in two grids: for a pruning, each grid recorded its own sparsities."""
    if one.task != PRUNE:
        return one
    both = joined(vars(other.result), vars(one.result))
    return replace(one, metrics=flat(both["metrics"]), result=replace(one.result, **both))


def planned_seeds(grids: Iterable[dict[str, Any]], only: Sequence[str] = ()) -> dict[tuple[str, str], set[int]]:
    """(model, task) -> seeds that some grid requests, within the selection `only`."""
    left = [set(word.partition("=")[2].split(",")) for word in only if word.startswith("seed=")]
    found: dict[tuple[str, str], set[int]] = {}
    for grid in grids:
        tasks = grid.get("tasks") or []
        seeds = {seed for seed in grid.get("seeds") or () if all(str(seed) in names for names in left)}
        for model in grid.get("models") or ():
            own = tasks.get(model) if isinstance(tasks, dict) else tasks
            for task in (own or ()) if grid.get("finetune", True) else (ZERO_SHOT,):
                found.setdefault((model, task), set()).update(seeds)
    return found


def one_version(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """The runs of the current version, or if there are none of the newest; and a note on each other version."""
    by_version: dict[str, list[Run]] = {}
    for run in runs:
        by_version.setdefault(json.dumps(run.result.version, sort_keys=True), []).append(run)
    today = json.dumps(version(), sort_keys=True)
    newest = max(by_version, key=lambda key: max(map(_finished, by_version[key])))
    chosen = today if today in by_version else newest
    notes = [
        f"{counted(len(others), 'result')} of another version ({difference(others[0].result.version)}) "
        f"{agreed(len(others), 'is')} left out"
        for key, others in by_version.items()
        if key != chosen
    ]
    if chosen != today:
        other = difference(by_version[chosen][0].result.version)
        notes.insert(0, f"these results were made with another version than today's ({other})")
    return by_version[chosen], notes


def one_recipe(runs: list[Run]) -> tuple[list[Run], list[str]]:
    """Runs that are comparable in one table, and notes on those left out.

    A task has one configuration for all pruners; a pruner's masks are made in one way for all tasks; each cell has one
    result. Of several configurations, the one with the most results stays.
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
                words = f"{counted(others, 'result')} of {' '.join(map(str, at))} {what}"
                notes.append(f"{words} {agreed(others, 'is')} left out")
        return [run for run in those if kind(run) in (None, best.get(group(run)))]

    tasks = [run for run in runs if run.task != PRUNE]
    tasks = keep(lambda run: (run.model, run.task), _table_of, "with another configuration", tasks)
    both = [run for run in runs if run.task == PRUNE] + tasks
    both = keep(_masks_of, lambda run: run.recipe, "pruned in another way", both)
    places: dict[tuple[Any, ...], Run] = {}
    for run in sorted(both, key=_finished):  # the newest stays
        places[run.model, run.pruner, run.sparsity, run.task, run.seed] = run
    if twice := len(both) - len(places):
        notes.append(f"{counted(twice, 'result', 'has')} a newer one in the same place, which is used")
    return list(places.values()), notes


def ordered(names: Iterable[str], *preferences: Iterable[str]) -> list[str]:
    """Names in the order of the first preference that has them, the others alphabetically."""
    ranks: dict[str, int] = {}
    for name in (name for preference in preferences for name in preference):
        ranks.setdefault(name, len(ranks))
    return sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name))


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
    """Whether a selection keeps a run; an axis does not select among runs that do not depend on it."""
    if axis in ("sparsity", "pruner") and run.pruner in UNPRUNED:
        return True
    if axis in ("sparsity", "task") and run.task == PRUNE:
        return True
    return _value(run, axis) in wanted or (axis == "seed" and not run.chance)


def _value(run: Run, axis: str) -> str:
    return percent(run.sparsity / 100) if axis == "sparsity" else str(getattr(run, axis))


def _table_of(run: Run) -> str:
    """Equal for all runs that may be in one table; a row's own options of training do not count."""
    return run.result.defined_by.get("among", run.result.like)


def _masks_of(run: Run) -> tuple[str, ...]:
    """Runs that must have masks made in one way: of all tasks, or of one task for rows that prune while training."""
    return (run.model, run.pruner, run.task) if run.method in CHOICES else (run.model, run.pruner)


def _recipe(run: Run, runs: dict[str, Run]) -> str | None:
    if run.method in CHOICES:
        own = run.result.defined_by.get("progressive", {})
        return hash_json({key: value for key, value in own.items() if key != "sparsity"})
    made = run if run.task == PRUNE else runs.get(run.result.pruned_by or "")
    return hash_json({key: value for key, value in made.result.defined_by.items() if key != "seed"}) if made else None


def _finished(run: Run) -> str:
    return run.result.finished
