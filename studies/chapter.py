"""A chapter of a report: the tables and pictures of one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from models import file_name
from sparsity.percents import percent
from sparsity.progressive_config import CHOICES
from studies.costs import COSTS, costs_of
from studies.curves import MANY, curve_panel, height_for
from studies.layers import WIDTH, LayerShares, height, layer_map, layer_shares, margins, modality_shares
from studies.looks import Look, looks
from studies.metrics import metric_words, task_words
from studies.pareto import pareto_panel
from studies.pictures import Draw, inline
from studies.published import Published, published_table
from studies.rows import DENSE, UNPRUNED
from studies.scores import OverSeeds, Scores, ranks
from studies.sizes import PARETO, Sizes, size_table, sizes_of
from studies.tables import Table, cost_table, main_table, modality_table, overview_table, share_table, task_table


@dataclass(frozen=True)
class Panel:
    """A picture: the name of its file, a description, and a function that draws it."""

    name: str
    words: str
    draw: Draw
    size: dict[str, Any] = field(default_factory=dict)  # other sizes and margins than the defaults of pictures.py

    def inline(self) -> str:
        """The picture as an `<svg>` of a page."""
        return inline(self.draw, self.name, self.words, **self.size)


@dataclass
class Chapter:
    """The tables and pictures of one model. columns: (task, metric) of the main table. costs: axis -> pruner -> cost.

    cost: the axis of Pareto plots.
    """

    model: str
    scores: Scores
    columns: list[tuple[str, str]]
    looks: dict[str, Look]
    costs: dict[str, dict[str, OverSeeds]]
    cost: str
    layers: dict[float, LayerShares]
    sizes: Sizes
    published: Published | None = None

    @property
    def pruners(self) -> list[str]:
        """Rows of the tables."""
        return self.scores.pruners(self.model)

    @property
    def sparsities(self) -> list[float]:
        """Percents."""
        return self.scores.sparsities(self.model)

    def shares(self, sparsity: float) -> dict[str, float]:
        """Pruner -> share of the dense model kept, mean over the main table's tasks; only pruners that have all."""
        found = {name: self.scores.mean_share(self.model, name, sparsity, self.columns) for name in self.pruners}
        return {name: share.mean for name, share in found.items() if share is not None}

    def curves(self) -> list[Panel]:
        """A panel for each column of the main table, and with many pruners one of their differences."""
        kinds = (False, True) if len(self.pruners) > MANY else (False,)
        return [
            Panel(
                f"{file_name(self.model)}-{file_name(task)}-{metric}{'-differences' * relative}".replace(" ", "-"),
                f"{task_words(task)}, {metric_words(task, metric)}, against sparsity",
                curve_panel(self.scores, self.model, task, metric, self.looks, relative),
                {"height": height_for(1 + len(self.pruners))},  # and the dense model
            )
            for task, metric in self.columns
            for relative in kinds
            if self.sparsities
        ]

    def paretos(self) -> list[Panel]:
        """A panel for each sparsity at which pruners have both a score and a cost."""
        panels = []
        for sparsity in self.sparsities:
            shares, costs = self.shares(sparsity), self.costs.get(self.cost, {})
            points = {name: (costs[name].mean, 100 * share) for name, share in shares.items() if name in costs}
            if len(points) > 1:
                panels.append(
                    Panel(
                        f"{file_name(self.model)}-pareto-{percent(sparsity / 100)}",
                        f"share of the dense model kept against {COSTS[self.cost][0]}, at {percent(sparsity / 100)} %",
                        pareto_panel(
                            points,
                            self.looks,
                            f"% of dense kept at {percent(sparsity / 100)} %",
                            "{} ({})".format(*COSTS[self.cost]),
                        ),
                    )
                )
        return panels

    def size_paretos(self) -> list[Panel]:
        """A panel for each column of the main table, against parameters and against time: a point per smaller model."""
        panels = []
        for task, metric in self.columns:
            for axis, words in PARETO.items():
                points, own = {}, {DENSE: Look("grey", 0)}
                for (name, sparsity), both in self.sizes.items():
                    if score := self.scores.get(self.model, task, metric, name, sparsity):
                        label = f"{name} {percent(sparsity / 100)}"
                        points[label], own[label] = (100 * both[axis][1] / both[axis][0], score.mean), self.looks[name]
                if len(points) > 1:
                    if dense := self.scores.dense(self.model, task, metric):
                        points[DENSE] = (100.0, dense.mean)
                    title = f"{task_words(task)}, {metric_words(task, metric)}"
                    name = f"{file_name(self.model)}-{file_name(task)}-{metric}-{axis}".replace(" ", "-")
                    panels.append(Panel(name, f"{title}, against {words}", pareto_panel(points, own, title, words)))
        return panels

    def maps(self) -> list[Panel]:
        """A map of layers for each sparsity."""
        return [
            Panel(
                f"{file_name(self.model)}-layers-{percent(sparsity / 100)}",
                f"weights kept in every layer at {percent(sparsity / 100)} %, by pruner",
                layer_map(shares, self.pruners, sparsity),
                {"width": WIDTH, "height": height(shares), "margins": margins(shares)},
            )
            for sparsity, shares in self.layers.items()
        ]

    def best(self) -> list[tuple[str, str]]:
        """(share, words) of the best pruners at each sparsity at which all pruners have all tasks."""
        made = []
        for sparsity in self.sparsities:
            shares = {name: 100 * share for name, share in self.shares(sparsity).items()}
            if len(shares) == len(self.pruners) > 1:
                first = [name for name, rank in ranks(shares).items() if rank == 1]
                words = f"of dense kept at {percent(sparsity / 100)} %, by {' and '.join(first)}"
                made.append((f"{shares[first[0]]:.1f} %", words))
        return made

    def tables(self) -> dict[str, Table]:
        """Kind -> table; empty tables are left out."""
        made: dict[str, Table | None] = {}
        if self.sparsities:  # otherwise there is only the dense model
            made["scores"] = main_table(self.scores, self.model, self.columns)
            made["shares"] = share_table(self.scores, self.model, self.columns)
        made["sizes"] = size_table(self.model, self.sizes)
        made["cost"] = cost_table(self.model, self.costs, self.pruners)
        each = {s: modality_shares(self.scores.results, self.model, self.pruners, s) for s in self.sparsities}
        if shares := {sparsity: found for sparsity, found in each.items() if found}:
            trained = any(run.method in CHOICES for run in self.scores.results.tasks if run.model == self.model)
            made["modalities"] = modality_table(self.model, shares, self.pruners, trained)
        if self.published is not None:
            made["published"] = published_table(self.scores, self.published, self.model)
        for task in self.scores.tasks(self.model):
            made[task] = task_table(self.scores, self.model, task)
        return {kind: table for kind, table in made.items() if table is not None and table.rows}


def chapter_of(
    scores: Scores, model: str, chosen: dict[str, list[str]], cost: str, published: Published | None
) -> Chapter:
    """The chapter of a model. chosen: task -> metrics of the main table. cost: axis of the Pareto plots."""
    results = scores.results
    columns = [(task, metric) for task, metrics in chosen.items() for metric in metrics if task in scores.tasks(model)]
    columns = [(task, metric) for task, metric in columns if metric in scores.metrics(model, task)]
    pruners = scores.pruners(model)
    layers = {sparsity: layer_shares(results, model, pruners, sparsity) for sparsity in scores.sparsities(model)}
    methods = {run.pruner: run.method for run in (*results.tasks, *results.prunings) if run.pruner not in UNPRUNED}
    everyone = looks(results.order, methods)
    return Chapter(
        model,
        scores,
        columns or scores.main(model),
        {name: everyone[name] for name in pruners},
        {name: found for name in COSTS if (found := costs_of(results, model, pruners, name))},
        cost,
        {sparsity: shares for sparsity, shares in layers.items() if shares is not None},
        sizes_of(results, model, pruners, scores.sparsities(model)),
        published,
    )


def overview(chapters: Sequence[Chapter]) -> Table | None:
    """The table of all models, if there are several."""
    pruned = {chapter.model: chapter.columns for chapter in chapters if chapter.sparsities}
    table = overview_table(chapters[0].scores, pruned)
    return table if len(pruned) > 1 and table.rows else None
