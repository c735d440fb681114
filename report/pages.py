"""The page of a report: one HTML file, nothing fetched, no script, light and dark."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from html import escape
from typing import Any

from console.words import counted
from grid.places import short
from grid.version import packages
from inspection.page import cards, heading, page, paragraph
from models import file_name
from report.costs import COSTS
from report.curves import MANY, curve_panel
from report.layer_map import WIDTH, height, layer_map, margins
from report.layers import LayerShares
from report.markup_html import STYLE, html_table
from report.metrics import metric_words, task_words
from report.over_seeds import OverSeeds
from report.palette import Look, style
from report.pareto import pareto_panel
from report.pictures import Draw, inline
from report.published import Published, published_table
from report.scores import Scores, ranks
from report.tables import (
    Table,
    cost_table,
    main_table,
    modality_table,
    overview_table,
    share_table,
    task_table,
)
from sparsity.percents import percent

STAR = "Score and share of the dense model below it."


@dataclass(frozen=True)
class Panel:
    """A picture: its name among the files, what it shows in words, how it is drawn."""

    name: str
    words: str
    draw: Draw


@dataclass
class Chapter:
    """All there is on one model. columns: (task, metric) of the main table. costs: axis -> pruner -> cost."""

    model: str
    scores: Scores
    columns: list[tuple[str, str]]
    looks: dict[str, Look]
    costs: dict[str, dict[str, OverSeeds]]
    cost: str
    layers: dict[float, LayerShares]
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
        """Pruner -> share of the dense model kept, mean over the main table's tasks; of those that have all."""
        found = {name: self.scores.mean_share(self.model, name, sparsity, self.columns) for name in self.pruners}
        return {name: share.mean for name, share in found.items() if share is not None}

    def curves(self) -> list[Panel]:
        """A panel for each column of the main table; of many pruners, their differences beside it."""
        kinds = (False, True) if len(self.pruners) > MANY else (False,)
        return [
            Panel(
                f"{file_name(self.model)}-{file_name(task)}-{metric}{'-differences' * relative}".replace(" ", "-"),
                f"{task_words(task)}, {metric_words(metric)}, against sparsity",
                curve_panel(self.scores, self.model, task, metric, self.looks, relative),
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
                        pareto_panel(points, self.looks, sparsity, self.cost, "% of dense kept"),
                    )
                )
        return panels

    def maps(self) -> list[tuple[Panel, dict[str, Any]]]:
        """A map of layers for each sparsity, and its size."""
        return [
            (
                Panel(
                    f"{file_name(self.model)}-layers-{percent(sparsity / 100)}",
                    f"weights kept in every layer at {percent(sparsity / 100)} %, by pruner",
                    layer_map(shares, self.pruners, sparsity),
                ),
                {"width": WIDTH, "height": height(shares), "margins": margins(shares)},
            )
            for sparsity, shares in self.layers.items()
        ]

    def tables(self) -> dict[str, Table]:
        """Kind -> table; those that have no row are left out."""
        made: dict[str, Table | None] = {}
        if self.sparsities:  # else there is the dense model alone
            made["scores"] = main_table(self.scores, self.model, self.columns)
            made["shares"] = share_table(self.scores, self.model, self.columns)
        made["cost"] = cost_table(self.model, self.costs, self.pruners)
        if self.layers:
            made["modalities"] = modality_table(self.model, self.layers, self.pruners)
        if self.published is not None:
            made["published"] = published_table(self.scores, self.published, self.model)
        for task in self.scores.tasks(self.model):
            made[task] = task_table(self.scores, self.model, task)
        return {kind: table for kind, table in made.items() if table is not None and table.rows}


def overview(chapters: list[Chapter]) -> Table | None:
    """All models side by side, where there are several."""
    pruned = {chapter.model: chapter.columns for chapter in chapters if chapter.sparsities}
    table = overview_table(chapters[0].scores, pruned)
    return table if len(pruned) > 1 and table.rows else None


def report_page(chapters: list[Chapter]) -> str:
    """The whole page."""
    results = chapters[0].scores.results
    models = [chapter.model for chapter in chapters]
    runs = results.tasks
    seeds = sorted({run.seed for run in runs if run.chance})
    subtitle = (
        f"{', '.join(short(folder) for folder in results.folders)}: {counted(len(runs), 'run')} of tasks, "
        f"{counted(len(results.prunings), 'pruning')}, {counted(len(results.order), 'pruner')}, "
        f"{counted(len(seeds), 'seed')}"
    )
    parts = [paragraph(f"{note[0].upper()}{note[1:]}.", "warning") for note in results.notes]
    if len(chapters) > 1:
        parts.append("<nav>" + "".join(f'<a href="#{file_name(m)}">{escape(m)}</a>' for m in models) + "</nav>")
    if (table := overview(chapters)) is not None:
        everyone = {name: look for chapter in chapters for name, look in chapter.looks.items()}
        parts += [heading(f"All models: {table.caption}"), html_table(table, everyone)]
    for chapter in chapters:
        parts += _chapter(chapter, alone=len(chapters) == 1)
    parts += _made_with(chapters[0])
    title = f"Pruning {models[0]}" if len(models) == 1 else f"Pruning {', '.join(models[:-1])} and {models[-1]}"
    return page(title, subtitle, parts, style() + STYLE)


def _chapter(chapter: Chapter, alone: bool) -> list[str]:
    tables, looks = chapter.tables(), chapter.looks
    parts = [f'<h2 id="{file_name(chapter.model)}">{escape(chapter.model)}</h2>'] if not alone else []
    parts.append(_best(chapter))
    if "scores" in tables:
        table = tables["scores"]
        if any(cell.share for row in table.rows for cell in row.cells):
            table.notes.insert(0, STAR)
        parts += [heading("Scores"), html_table(table, looks)]
    if "published" in tables:
        parts += [heading("Beside published numbers"), html_table(tables["published"], looks)]
    if curves := chapter.curves():
        parts += [heading("Scores against sparsity"), _panels(curves)]
        parts.append('<p class="note">Upright strokes: one standard deviation over seeds. Points of one sparsity stand '
                     "a little apart, so that none covers another.</p>")  # fmt: skip
    parts += _costs(chapter, tables)
    if "modalities" in tables:
        parts += [heading("Where the weights go"), html_table(tables["modalities"], looks)]
        for panel, size in chapter.maps():
            drawn = inline(panel.draw, panel.name, panel.words, **size)
            parts.append(f'<div class="map" tabindex="0" role="region" aria-label="{panel.words}">{drawn}</div>')
        parts.append('<p class="note">Mean over seeds. A cross: nothing is kept of a layer.</p>')
    details = [(task, tables[task]) for task in chapter.scores.tasks(chapter.model) if task in tables]
    if details:
        parts.append(heading("Every metric"))
    for task, table in details:
        parts.append(f"<details><summary>{escape(task_words(task))}</summary>{html_table(table, looks)}</details>")
    return parts


def _best(chapter: Chapter) -> str:
    """Who keeps most of the dense model at each sparsity, where all pruners have all tasks."""
    made = []
    for sparsity in chapter.sparsities:
        shares = {name: 100 * share for name, share in chapter.shares(sparsity).items()}
        if len(shares) == len(chapter.pruners) > 1:
            best = [name for name, rank in ranks(shares).items() if rank == 1]
            words = f"of dense kept at {percent(sparsity / 100)} %, by {' and '.join(best)}"
            made.append((f"{shares[best[0]]:.1f} %", words))
    return cards(made) if made else ""


def _costs(chapter: Chapter, tables: dict[str, Table]) -> list[str]:
    if "cost" not in tables:
        return []
    parts = [heading("What pruning takes"), html_table(tables["cost"], chapter.looks)]
    if panels := chapter.paretos():
        parts += ["<h3>Score against cost</h3>", _panels(panels)]
        note = "Filled: no other pruner is better at less cost. Score: share of the dense model kept, mean over tasks."
        parts.append(f'<p class="note">{note}</p>')
    return parts


def _panels(panels: list[Panel]) -> str:
    drawn = "".join(f"<figure>{inline(panel.draw, panel.name, panel.words)}</figure>" for panel in panels)
    return f'<div class="panels">{drawn}</div>'


def short_commit(commit: str | None) -> str:
    """Twelve letters of it, and whether files differed from it."""
    name, changed, _ = (commit or "unknown").partition("+")
    return name[:12] + (" with changes" if changed else "")


def _made_with(chapter: Chapter) -> list[str]:
    """Commits and versions of the results, and what was not tested."""
    runs = (*chapter.scores.results.tasks, *chapter.scores.results.prunings)
    commits = Counter(short_commit(run.result.get("commit")) for run in runs)
    used = Counter(", ".join(map(" ".join, (run.result.get("packages") or {}).items())) for run in runs)
    times = sorted(str(run.result["finished"])[:10] for run in runs if run.result.get("finished"))
    most = [f"{name} ({counted(count, 'run')})" for name, count in commits.most_common(5)]
    lines = [f"Commits: {', '.join(most)}."]
    lines += [f"Made with {words} ({counted(count, 'run')})." for words, count in used.most_common(3) if words]
    lines += [f"Finished between {times[0]} and {times[-1]}."] if times else []
    lines += [f"Not tested in {counted(count, 'column')}: {why}." for why, count in chapter.scores.untested.items()]
    lines.append(f"Report by Python {packages()['python']}.")
    return [heading("How this was made"), '<p class="note">' + "<br>".join(map(escape, lines)) + "</p>"]
