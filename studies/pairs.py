"""Requested pairs of rows (--pairs): their differences, with p values of the paired bootstrap."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from console.errors import InputError, nearest
from evaluation.bootstrap import RESAMPLES
from sparsity.percents import percent
from studies.metrics import task_words
from studies.scores import Scores
from studies.tables import DAGGER, Cell, Row, Table


@dataclass(frozen=True)
class Pair:
    """Two rows to compare. tasks: of each row; empty: every task, and for the second row the first's task."""

    rows: tuple[str, str]
    tasks: tuple[str, str] = ("", "")

    @classmethod
    def of(cls, text: str, known: Sequence[str], tasks: Collection[str]) -> Pair:
        """From `ROW=ROW` or `ROW@TASK=ROW@TASK`; InputError for unknown rows and tasks."""
        sides = [side.partition("@") for side in text.split("=")]
        if len(sides) != 2 or (sides[1][2] and not sides[0][2]):
            raise InputError(f"--pairs takes two rows, as platon=omp or vpns@TASK=vpns@TASK, not '{text}'")
        rows = tuple(row.strip() for row, _, _ in sides)
        for row in rows:
            if row not in known:
                raise InputError(
                    f"--pairs: no row is called '{row}'{nearest(row, known)}: there are {', '.join(known)}"
                )
        of = (sides[0][2].strip(), sides[1][2].strip())
        for task in filter(None, of):
            if task not in tasks:
                raise InputError(
                    f"--pairs: no task is called '{task}'{nearest(task, tasks)}: there are {', '.join(tasks)}"
                )
        return cls((rows[0], rows[1]), of)

    def __str__(self) -> str:
        others = f" ({task_words(self.tasks[1])})" if self.tasks[1] else ""
        return f"{self.rows[0]} against {self.rows[1]}{others}"


def pairs_table(scores: Scores, pairs: Sequence[Pair]) -> Table:
    """The requested pairs, with their differences and p values; InputError if no pair has scores."""
    rows, untested = [], dict[str, None]()
    for model in scores.models:
        mine: list[Row] = []
        for pair, (task, metric) in itertools.product(pairs, scores.main(model)):
            if pair.tasks[0] not in ("", task):
                continue
            for sparsity in scores.sparsities(model):
                found = scores.difference((model, task, metric, sparsity), pair.rows, pair.tasks[1])
                if found is None:
                    continue
                untested |= {found.why: None} if found.why else {}
                chance = DAGGER if found.p is None else f"{found.p:.4f}"
                texts = (
                    task_words(task), f"{percent(sparsity / 100)} %", f"{found.first:.1f}", f"{found.second:.1f}",
                    f"{found.first - found.second:+.1f}", chance,
                )  # fmt: skip
                mine.append(Row(str(pair), [Cell(text) for text in texts]))
        rows += [Row(model, [], "section"), *mine] if mine else []
    if not rows:
        raise InputError("--pairs: these rows have no scores of the same task, metric and sparsity")
    heads = [[(word, 1) for word in ("task", "sparsity", "first", "second", "difference", "p")]]
    notes = [
        f"p: paired bootstrap over the test pictures, each drawn with all its items, {RESAMPLES:,} resamples, scores "
        "averaged over seeds. It does not cover the choice of seeds.",
        *(f"{DAGGER} not tested: {why}." for why in untested),
    ]
    return Table("pairs", "pairs of rows", heads, rows, first="pair", notes=notes)
