"""Tables as in papers on pruning: a row per pruner, columns of tasks and metrics by sparsity, dense on top."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from console.words import share_of_matrices
from evaluation.bootstrap import RESAMPLES
from models import file_name
from sparsity.percents import percent
from studies.costs import COSTS
from studies.metrics import metric_words, task_words
from studies.rows import DENSE, UNPRUNED
from studies.scores import DIGITS, LEVEL, OverSeeds, Score, Scores, ranks

DAGGER = "†"
FEWER = "A number in brackets: seeds so far, if some are missing."
Heads = list[tuple[str, int]]
"""A header's text and the number of columns it spans."""

Columns = Sequence[tuple[str, str]]
"""Task and metric of each."""


@dataclass(frozen=True)
class Cell:
    """text: the number; empty if there is none. share: percent of dense, below it. rank: 1 bold, 2 underlined.

    mark: a star if significant, a dagger if not tested. seeds: their number, if some are missing.
    """

    text: str = ""
    spread: str = ""
    share: str = ""
    rank: int = 0
    mark: str = ""
    seeds: str = ""
    title: str = ""
    span: int = 1


@dataclass(frozen=True)
class Row:
    """kind: "dense" (not pruned, separated by a rule), "section" (a heading within the table) or empty."""

    label: str
    cells: list[Cell]
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """name: of its files. heads: lines of the header, from the top; the last has one entry per column."""

    name: str
    caption: str
    heads: list[Heads]
    rows: list[Row]
    first: str = "pruner"
    notes: list[str] = field(default_factory=list)

    def width(self) -> int:
        """Number of columns without the first."""
        return len(self.heads[-1])

    def with_spread(self) -> set[int]:
        """Columns in which some number has a spread, or is of fewer seeds than it should be."""
        rows = [row.cells for row in self.rows if all(cell.span == 1 for cell in row.cells)]
        return {column for cells in rows for column, cell in enumerate(cells) if cell.spread or cell.seeds}

    def starts(self) -> set[int]:
        """First columns of the groups in the second-lowest line of the header."""
        spans = [span for _, span in self.heads[-2]] if len(self.heads) > 1 else []
        return {0, *itertools.accumulate(spans)} if spans else set()


def main_table(scores: Scores, model: str, columns: Columns) -> Table:
    """Scores by sparsity: mean and standard deviation over seeds, and the share of the dense model kept."""
    sparsities = scores.sparsities(model)
    rows = []
    for name in UNPRUNED:
        found = [scores.get(model, *column, name, 0.0) for column in columns]
        rows.append(Row(name, [cell_of(score, max(1, len(sparsities))) for score in found], "dense"))
    for pruner in scores.pruners(model):
        cells = [cell_of(scores.get(model, *column, pruner, s)) for column in columns for s in sparsities]
        rows.append(Row(pruner, cells))
    return _table(scores, model, "scores", _column_words(columns), _heads(scores, model, columns), rows)


def share_table(scores: Scores, model: str, columns: Columns) -> Table:
    """Percent of the dense model's scores that each pruner keeps, and the mean over tasks."""
    sparsities = scores.sparsities(model)
    rows = []
    for pruner in scores.pruners(model):
        found = [scores.get(model, *column, pruner, s) for column in columns for s in sparsities]
        cells = [Cell(_percent(of.share), rank=of.rank) if of and of.share is not None else Cell() for of in found]
        means = [_mean_cell(scores.mean_share(model, pruner, s, columns)) for s in sparsities]
        rows.append(Row(pruner, cells + means))
    heads = _heads(scores, model, columns)
    heads[0].append(("all tasks", len(sparsities)))
    heads[1].append(("mean", len(sparsities)))
    heads[2] += [(f"{percent(s / 100)} %", 1) for s in sparsities]
    notes = ["Percent of the dense model's mean; the last columns are means over the others of one sparsity."]
    caption = f"{model}: share of the dense model kept"
    return Table(f"{file_name(model)}_share_of_dense", caption, heads, rows, notes=[*_of_what(scores, model), *notes])


def overview_table(scores: Scores, columns: Mapping[str, Columns]) -> Table:
    """Percent of dense that pruners keep, for every model: mean over its columns."""
    cells: dict[str, list[Cell]] = {name: [] for name in scores.results.order if name != DENSE}
    for model, own in columns.items():
        for sparsity in scores.sparsities(model):
            found = {name: scores.mean_share(model, name, sparsity, own) for name in scores.pruners(model)}
            places = ranks({name: 100 * share.mean for name, share in found.items() if share is not None})
            for name, line in cells.items():
                line.append(replace(_mean_cell(found.get(name)), rank=places.get(name, 0)))
    rows = _filled(Row(name, line) for name, line in cells.items())
    notes = [_notes(rows)[0]]
    for model, own in columns.items():
        words = f"{model}: {'mean over ' * (len(own) > 1)}{_column_words(own)}."
        notes.append(" ".join([words, *_of_what(scores, model)]))
    if any(cell.seeds for row in rows for cell in row.cells):
        notes.append(FEWER)
    heads = [
        [(model, len(scores.sparsities(model))) for model in columns if scores.sparsities(model)],
        [(f"{percent(s / 100)} %", 1) for model in columns for s in scores.sparsities(model)],
    ]
    return Table("overview", "percent of the dense model kept", heads, rows, notes=notes)


def task_table(scores: Scores, model: str, task: str) -> Table:
    """All metrics of a task, a section per sparsity, and the share of weights kept in each modality."""
    metrics = scores.metrics(model, task)
    places = [(name, 0.0) for name in UNPRUNED]
    places += [(name, s) for s in scores.sparsities(model) for name in scores.pruners(model)]
    kept = {place: scores.results.kept(model, *place, task) for place in places}
    modalities = list(dict.fromkeys(modality for shares in kept.values() for modality in shares))

    def row(pruner: str, sparsity: float, kind: str = "") -> Row:
        cells = [cell_of(scores.get(model, task, metric, pruner, sparsity)) for metric in metrics]
        shares = [kept[pruner, sparsity].get(modality) for modality in modalities]
        return Row(pruner, cells + [Cell("" if share is None else _percent(share)) for share in shares], kind)

    rows = [row(name, 0.0, "dense") for name in UNPRUNED]
    for sparsity in scores.sparsities(model):
        rows.append(Row(f"{percent(sparsity / 100)} %", [], "section"))
        rows += [row(pruner, sparsity) for pruner in scores.pruners(model)]
    heads = [[(metric_words(task, metric), 1) for metric in metrics] + [(f"{name} kept", 1) for name in modalities]]
    table = _table(scores, model, file_name(task), f"every metric of {task_words(task)}", heads, rows)
    notes = ["Kept: percent of a modality's prunable weights that are not zero, mean over seeds."] * bool(modalities)
    return replace(table, notes=table.notes + notes)


def cost_table(model: str, costs: dict[str, dict[str, OverSeeds]], pruners: Sequence[str]) -> Table:
    """costs: axis of `COSTS` -> pruner -> cost."""

    def cell(cost: OverSeeds | None) -> Cell:
        if cost is None:
            return Cell()
        return Cell(number(cost.mean), "" if cost.sd is None else number(cost.sd, like=cost.mean))

    heads = [[(f"{COSTS[name][0]} ({COSTS[name][1]})", 1) for name in costs]]
    rows = _filled(Row(pruner, [cell(costs[name].get(pruner)) for name in costs]) for pruner in pruners)
    notes = ["One pruning for all sparsities together, mean ± standard deviation over seeds."]
    return Table(f"{file_name(model)}_cost", f"{model}: cost of pruning", heads, rows, notes=notes)


def modality_table(
    model: str, shares: Mapping[float, Mapping[str, Mapping[str, float]]], pruners: Sequence[str], trained: bool
) -> Table:
    """Share of every modality's weights that is pruned, by requested sparsity.

    shares: sparsity -> pruner -> modality -> share. trained: whether some rows prune while training.
    """
    each = [found for rows in shares.values() for found in rows.values()]
    modalities = list(dict.fromkeys(modality for found in each for modality in found))
    heads: list[Heads] = [
        [(f"{percent(sparsity / 100)} % asked", len(modalities)) for sparsity in shares],
        [(modality, 1) for _ in shares for modality in modalities],
    ]

    def cell(found: Mapping[str, Mapping[str, float]], pruner: str, modality: str) -> Cell:
        share = found.get(pruner, {}).get(modality)
        return Cell("" if share is None else _percent(share))

    rows = _filled(
        Row(pruner, [cell(found, pruner, modality) for found in shares.values() for modality in modalities])
        for pruner in pruners
    )
    notes = ["Percent of a modality's prunable weights."]
    if trained:
        notes.append(
            "Rows that prune while training have a mask for each task, counted next to its scores: means over tasks."
        )
    return Table(f"{file_name(model)}_modalities", f"{model}: weights pruned by modality", heads, rows, notes=notes)


def cell_of(score: Score | None, span: int = 1) -> Cell:
    """A score as it is shown."""
    if score is None:
        return Cell(span=span)
    tested = score.p is not None and score.p < LEVEL
    untested = score.p is None and bool(score.against)
    words = f"seeds: {', '.join(f'{value:.2f}' for value in score.values)}"
    if score.p is not None:
        words += f"; p = {score.p:.4f} against {score.against}"
    return Cell(
        f"{score.mean:.{DIGITS}f}",
        "" if score.sd is None else f"{score.sd:.{DIGITS}f}",
        "" if score.share is None else _percent(score.share),
        score.rank,
        "*" if tested else DAGGER if untested else "",
        str(len(score.values)) if score.missing else "",
        words,
        span,
    )


def number(value: float, like: float | None = None) -> str:
    """Three significant digits, at most three decimals: 0.031, 4.51, 132. like: use as many decimals as this number."""
    size = abs(value if like is None else like)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def _table(scores: Scores, model: str, name: str, caption: str, heads: list[Heads], rows: list[Row]) -> Table:
    """A table of scores without empty rows and sections, with notes on its marks."""
    rows = _filled(rows)
    below = [*rows[1:], Row("", [], "section")]
    rows = [row for row, after in zip(rows, below, strict=True) if not row.kind == after.kind == "section"]
    notes = [*_of_what(scores, model), *_notes(rows)]
    return Table(f"{file_name(model)}_{name}", f"{model}: {caption}", heads, rows, notes=notes)


def _heads(scores: Scores, model: str, columns: Columns) -> list[Heads]:
    sparsities = scores.sparsities(model)
    by_task = itertools.groupby(columns, key=lambda column: task_words(column[0]))
    tasks = [(words, len(sparsities) * len(list(own))) for words, own in by_task]
    metrics = [(metric_words(task, metric), len(sparsities)) for task, metric in columns]
    return [tasks, metrics, [(f"{percent(s / 100)} %", 1) for _ in columns for s in sparsities]]


def _column_words(columns: Columns) -> str:
    return ", ".join(f"{task_words(task)} ({metric_words(task, metric)})" for task, metric in columns)


def _filled(rows: Iterable[Row]) -> list[Row]:
    """Rows with at least one number, and headings."""
    return [row for row in rows if row.kind == "section" or any(cell.text for cell in row.cells)]


def _of_what(scores: Scores, model: str) -> list[str]:
    """The note on what 100 % of a model's weights are, if known."""
    found = scores.results.prunable(model)
    return [] if found is None else [f"Sparsities are percents of {share_of_matrices(*found)}."]


def _notes(rows: Sequence[Row]) -> list[str]:
    """Notes on the marks that occur in a table."""
    cells = [cell for row in rows for cell in row.cells]
    notes = [
        "Mean ± standard deviation over seeds; a number alone is of one seed, or does not depend on the seed. "
        "Bold: best, underlined: second, after rounding."
    ]
    tested, untested = any(" p = " in cell.title for cell in cells), any(cell.mark == DAGGER for cell in cells)
    if tested:
        stars = any(cell.mark == "*" for cell in cells)
        differs = "* the best differs" if stars else "No star: the best never differs"
        notes.append(
            f"{differs} from the second with p < {LEVEL:g}: paired bootstrap over the test pictures, each drawn with "
            f"all its items, {RESAMPLES:,} resamples, scores averaged over seeds. It does not cover the choice of "
            "seeds."
        )
    if untested:
        notes.append(
            f"{DAGGER} not tested: the runs saved no scores of single test items for it, without their pictures, of "
            "different items, or of too few pictures."
        )
    if not (tested or untested):
        notes.append("Significance was not tested: that takes two pruners with different scores.")
    if any(cell.seeds for cell in cells):
        notes.append(FEWER)
    return notes


def _mean_cell(share: Score | None) -> Cell:
    """A mean of shares in percent."""
    if share is None:
        return Cell()
    spread = "" if share.sd is None else _percent(share.sd)
    words = f"seeds: {', '.join(f'{100 * value:.2f}' for value in share.values)}"
    return Cell(_percent(share.mean), spread, seeds=str(len(share.values)) if share.missing else "", title=words)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
