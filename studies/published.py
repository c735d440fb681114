"""Published numbers compared with ours.

A CSV file with a line per number, with the units and names of our results:

    model,task,metric,pruner,sparsity,value
    xvlm,retrieval,txt_r1,multiflow,63,72.9
    xvlm,retrieval,txt_r1,dense,0,79.1
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from console.errors import InputError, explain_os_error, nearest
from models import file_name
from sparsity.percents import percent
from studies.metrics import check_metric, metric_words, task_words
from studies.plan import DENSE
from studies.reading import ordered
from studies.scores import DIGITS, Scores
from studies.tables import Cell, Heads, Row, Table

COLUMNS = ("model", "task", "metric", "pruner", "sparsity", "value")


@dataclass(frozen=True)
class Published:
    """(model, task, metric, pruner, sparsity in percent) -> value. notes: on published numbers without one of ours."""

    name: str
    values: dict[tuple[str, str, str, str, float], float]
    notes: tuple[str, ...] = ()


def read_published(path: Path, scores: Scores) -> Published:
    """Read the file; InputError for a missing column, an invalid number, an unknown metric of one of our tasks, and a
    file without any number on our results.
    """
    values: dict[tuple[str, str, str, str, float], float] = {}
    own = {model: scores.tasks(model) for model in scores.models}
    for number, row in _lines(path):
        where = f"{path}, line {number}"
        model, task, metric, pruner = ((row[name] or "").strip() for name in COLUMNS[:4])
        if task in own.get(model, ()):
            check_metric(task, metric, scores.metrics(model, task), where)
        key = (model, task, metric, pruner, 0.0 if pruner == DENSE else _number(row["sparsity"], where, "sparsity"))
        if key in values:
            raise InputError(f"{where}: {pruner} at {row['sparsity']} % is given twice for {task}/{metric}")
        values[key] = _number(row["value"], where, "value")
    if not any(task in own.get(model, ()) for model, task, *_ in values):
        raise InputError(
            f"{path} has no number on these results: they are of {', '.join(scores.models)} and the tasks "
            f"{', '.join(scores.known)}"
        )
    return Published(path.stem, values, _alone(path, [key for key in values if key[1] in own.get(key[0], ())], scores))


def published_table(scores: Scores, published: Published, model: str) -> Table | None:
    """Ours, theirs and the difference, by task, metric and sparsity; None without numbers on the model."""
    known = scores.tasks(model)
    values = {key[1:]: value for key, value in published.values.items() if key[0] == model and key[1] in known}
    if not values:
        return None
    columns = list(dict.fromkeys((task, metric) for task, metric, _, _ in values))
    columns.sort(key=lambda column: known.index(column[0]))
    pruners = ordered({pruner for _, _, pruner, _ in values} - {DENSE}, scores.results.order)
    heads: list[Heads] = [[], [], []]
    wide: list[tuple[str, str, float]] = []
    for task, metric in columns:
        sparsities = sorted({s for t, m, p, s in values if (t, m) == (task, metric) and p != DENSE}) or [0.0]
        heads[0].append((f"{task_words(task)}: {metric_words(task, metric)}", 3 * len(sparsities)))
        for sparsity in sparsities:
            heads[1].append((f"{percent(sparsity / 100)} %" if sparsity else "dense", 3))
            heads[2] += [("ours", 1), ("published", 1), ("difference", 1)]
            wide.append((task, metric, sparsity))

    def cells(pruner: str) -> list[Cell]:
        made: list[Cell] = []
        for task, metric, sparsity in wide:
            at = 0.0 if pruner == DENSE else sparsity
            theirs = values.get((task, metric, pruner, at))
            score = scores.get(model, task, metric, pruner, at)
            ours = Cell() if score is None else Cell(f"{score.mean:.{DIGITS}f}", _spread(score.sd))
            gap = "" if theirs is None or score is None else f"{score.mean - theirs:+.{DIGITS}f}".replace("-", "−")
            made += [ours, Cell("" if theirs is None else f"{theirs:.{DIGITS}f}"), Cell(gap)]
        return made

    rows = [Row(DENSE, cells(DENSE), "dense")] if any(pruner == DENSE for _, _, pruner, _ in values) else []
    rows += [Row(pruner, cells(pruner)) for pruner in pruners]
    notes = [f"Published: {published.name}. Difference: ours minus published."]
    return Table(f"{file_name(model)}_published", f"{model}: compared with published numbers", heads, rows, notes=notes)


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows of the file, each with the number of its line."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} lacks the column '{missing[0]}': its first line must be {','.join(COLUMNS)}")
            return [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: save it as CSV in that encoding") from error
    except csv.Error as error:
        raise InputError(
            f"{path} cannot be read as CSV ({error}): look for a quotation mark that is not closed"
        ) from error


def _alone(path: Path, keys: list[tuple[str, str, str, str, float]], scores: Scores) -> tuple[str, ...]:
    """A note on published numbers of our tasks that have no counterpart in our results; empty if there are none."""
    rows: dict[str, None] = {}
    for model, task, metric, pruner, sparsity in keys:
        if pruner == DENSE:
            continue
        if pruner not in scores.pruners(model):
            rows[f"{pruner}{nearest(pruner, scores.pruners(model))}"] = None
        elif scores.get(model, task, metric, pruner, sparsity) is None:
            rows[f"{pruner} at {percent(sparsity / 100)} %"] = None
    return (f"{path} has numbers without a counterpart in these results: {', '.join(rows)}",) if rows else ()


def _spread(sd: float | None) -> str:
    return "" if sd is None else f"{sd:.{DIGITS}f}"


def _number(text: str | None, where: str, column: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{where}: '{text}' in the column '{column}' is not a number: write it as 63 or 72.9")
    return value
