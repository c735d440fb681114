"""Means over seeds, shares of the dense score, ranks in every column, and significance of the best."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from console.errors import InputError
from studies.metrics import main_metric, tasks_ordered
from studies.reading import Results, ordered
from studies.rows import DENSE, UNPRUNED
from studies.run import Run
from studies.significance import p_value

DIGITS = 1
"""Decimals of a score; scores that are equal after rounding share a rank."""

LEVEL = 0.05
"""Significance level: differences with a smaller p value are marked."""

FIXED = -1
"""Seed of runs that do not depend on the seed; stands for every seed."""

Column = tuple[str, str, str, float]
"""Model, task, metric, sparsity in percent: pruners are compared within a column."""


@dataclass(frozen=True)
class OverSeeds:
    """A number measured with several seeds. values: one for each."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds (n - 1); None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Score(OverSeeds):
    """A pruner's score in a column.

    values: by seed. share: of the dense model's mean, None without one. rank: 1 for the best pruner, 2 for the second,
    else 0. p: of the best against the second, None if not tested. against: the second. expected: number of seeds.
    """

    expected: int
    share: float | None = None
    rank: int = 0
    p: float | None = None
    against: str = ""

    @property
    def missing(self) -> int:
        """Number of seeds without a result yet."""
        return max(0, self.expected - len(self.values))


@dataclass(frozen=True)
class Difference:
    """Means over seeds of two rows, and the p value of their difference; if it was not tested, None and the reason."""

    first: float
    second: float
    p: float | None
    why: str = ""


class Scores:
    """All scores of some results."""

    def __init__(self, results: Results):
        self.results = results
        self.untested: Counter[str] = Counter()
        """Reason why columns were not tested -> number of columns."""
        self._runs: dict[tuple[str, str, str, float], list[Run]] = defaultdict(list)
        self._seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
        for place, seeds in results.planned.items():
            self._seeds[place] |= seeds
        for run in results.tasks:
            self._runs[run.model, run.task, run.pruner, run.sparsity].append(run)
            if run.chance:
                self._seeds[run.model, run.task].add(run.seed)
        self._columns: dict[Column, dict[str, Score]] = {}
        runs = {run.id: run for run in results.tasks}
        self._items = lru_cache(maxsize=64)(lambda name: runs[name].items())  # all metrics of a run use them

    @property
    def models(self) -> tuple[str, ...]:
        """In the order of the grid."""
        return self.results.models

    @cached_property
    def known(self) -> dict[str, list[str]]:
        """Task -> its metrics, as the scripts write them."""
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for run in self.results.tasks:
            found[run.task] |= dict.fromkeys(run.metrics)
        return {task: list(found[task]) for task in tasks_ordered(found)}

    def tasks(self, model: str) -> list[str]:
        """The tasks of a model."""
        return tasks_ordered({run.task for run in self.results.tasks if run.model == model})

    def metrics(self, model: str, task: str) -> list[str]:
        """The metrics of a task of a model."""
        runs = [run for run in self.results.tasks if (run.model, run.task) == (model, task)]
        return list(dict.fromkeys(name for run in runs for name in run.metrics))

    def main(self, model: str) -> list[tuple[str, str]]:
        """(task, its main metric) of a model."""
        found = [(task, self.metrics(model, task)) for task in self.tasks(model)]
        return [(task, main_metric(task, metrics)) for task, metrics in found if metrics]

    def pruners(self, model: str) -> list[str]:
        """Rows of a model's tables, without UNPRUNED."""
        runs = (*self.results.tasks, *self.results.prunings)
        return ordered({run.pruner for run in runs if run.model == model} - {*UNPRUNED}, self.results.order)

    def sparsities(self, model: str) -> list[float]:
        """The sparsities of a model's masks, in rising percents."""
        return sorted({run.sparsity for run in self.results.tasks if run.model == model and run.pruner not in UNPRUNED})

    def dense(self, model: str, task: str, metric: str) -> Score | None:
        """The dense model's own score."""
        return self._score(model, task, metric, DENSE, 0.0)

    def get(self, model: str, task: str, metric: str, pruner: str, sparsity: float) -> Score | None:
        """A pruner's score, or that of a row of UNPRUNED at any sparsity; None if there is none."""
        if pruner in UNPRUNED:
            return self._score(model, task, metric, pruner, 0.0)
        return self.column((model, task, metric, sparsity)).get(pruner)

    def column(self, column: Column) -> dict[str, Score]:
        """Pruner -> score, ranked and tested."""
        if column not in self._columns:
            self._columns[column] = self._ranked(column)
        return self._columns[column]

    def mean_share(self, model: str, pruner: str, sparsity: float, columns: Iterable[tuple[str, str]]) -> Score | None:
        """Share of the dense model kept, mean over (task, metric), for every seed that all of these have.

        A run that does not depend on the seed counts for every seed. None if no seed has all.
        """
        found, expected = [], 1
        for task, metric in columns:
            dense = self.dense(model, task, metric)
            if dense is None or not dense.mean > 0:
                return None
            runs = self.runs(model, task, metric, pruner, sparsity)
            found.append({run.seed if run.chance else FIXED: run.metrics[metric] / dense.mean for run in runs})
            if found[-1] and FIXED not in found[-1]:
                expected = max(expected, len(self._seeds[model, task]))
        drawn = [set(column) for column in found if FIXED not in column]
        seeds = sorted(set.intersection(*drawn)) if drawn else [FIXED] * bool(found)
        values = [statistics.fmean(column.get(FIXED, column.get(seed, 0)) for column in found) for seed in seeds]
        return Score(tuple(values), expected) if values else None

    def difference(self, one: Column, rows: tuple[str, str], task: str = "") -> Difference | None:
        """The difference of two rows in a column; None if either has no score.

        task: the second row's, if another; both must be tested on the same items.
        """
        model, first_task, metric, sparsity = one
        sides = ((rows[0], first_task), (rows[1], task or first_task))
        ours, theirs = (self.runs(model, of, metric, row, 0.0 if row in UNPRUNED else sparsity) for row, of in sides)
        if not (ours and theirs):
            return None
        means = [statistics.fmean(run.metrics[metric] for run in own) for own in (ours, theirs)]
        try:
            p = p_value(*([self._items(run.id) for run in own] for own in (ours, theirs)), metric)
        except InputError as error:
            return Difference(*means, None, str(error))
        return Difference(*means, p)

    # -- one column ------------------------------------------------------------------------------------

    def runs(self, model: str, task: str, metric: str, pruner: str, sparsity: float) -> list[Run]:
        """The runs of a row in a column, by seed."""
        runs = self._runs.get((model, task, pruner, sparsity), [])
        return sorted((run for run in runs if metric in run.metrics), key=lambda run: run.seed)

    def _score(self, model: str, task: str, metric: str, pruner: str, sparsity: float) -> Score | None:
        runs = self.runs(model, task, metric, pruner, sparsity)
        if not runs:
            return None
        expected = len(self._seeds[model, task]) if all(run.chance for run in runs) else 1
        return Score(tuple(run.metrics[metric] for run in runs), expected)

    def _ranked(self, column: Column) -> dict[str, Score]:
        model, task, metric, sparsity = column
        dense = self.dense(model, task, metric)
        found = {}
        for pruner in self.pruners(model):
            if score := self._score(model, task, metric, pruner, sparsity):
                share = score.mean / dense.mean if dense is not None and dense.mean > 0 else None
                found[pruner] = replace(score, share=share)
        if len(found) < 2:
            return found
        for pruner, rank in ranks({pruner: score.mean for pruner, score in found.items()}).items():
            found[pruner] = replace(found[pruner], rank=rank)
        first, second = sorted(found, key=lambda pruner: -found[pruner].mean)[:2]
        if found[second].rank == 2:  # otherwise two pruners share the first rank
            tested = self.difference(column, (first, second))
            assert tested is not None, "both have scores"
            if tested.why:
                self.untested[tested.why] += 1
            found[first] = replace(found[first], p=tested.p, against=second)
        return found


def ranks(values: Mapping[str, float]) -> dict[str, int]:
    """Name -> 1 for the best of two or more after rounding, 2 for the second, else 0."""
    shown = {name: round(value, DIGITS) for name, value in values.items()}
    places = sorted(set(shown.values()), reverse=True)[:2] if len(shown) > 1 else []
    return {name: 1 + places.index(value) if value in places else 0 for name, value in shown.items()}
