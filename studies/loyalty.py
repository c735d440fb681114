"""Loyalty: the share of test items on which a pruned model gives the dense model's answer, right or wrong.

An unchanged score may hide that other items are wrong. Answers are compared if they were saved, as lmms-eval and
lm-eval do with --log_samples; else the scores of items, which agree if both models are right or both wrong. Each item
is averaged over seeds; the interval is a bootstrap over pictures.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Hashable

import numpy as np

from console.errors import InputError
from data.records import Id
from evaluation.bootstrap import RESAMPLES, interval
from sparsity.percents import percent
from studies.metrics import metric_words, task_words
from studies.plan import DENSE
from studies.run import Run
from studies.scores import Scores
from studies.significance import scores_of
from studies.tables import Cell, Row, Table

Given = dict[tuple[int, Id], tuple[object, Hashable]]
"""Kind of an item and its id -> a run's answer or score, and the item's picture."""


def loyalty_table(scores: Scores) -> Table | None:
    """A row for each task, sparsity and pruner; None if no run has items."""
    rows = []
    for model in scores.models:
        mine = []
        for task, metric in scores.main(model):
            for sparsity in scores.sparsities(model):
                for pruner in scores.pruners(model):
                    found = _loyalty(scores, (model, task, metric), pruner, sparsity)
                    if found is not None:
                        texts = (task_words(task), f"{percent(sparsity / 100)} %", *found)
                        mine.append(Row(pruner, [Cell(text) for text in texts]))
        rows += [Row(model, [], "section"), *mine] if mine else []
    if not rows:
        return None
    heads = [[(word, 1) for word in ("task", "sparsity", "same as dense, %", "95 % interval", "items", "compared")]]
    notes = [f"Interval: bootstrap over pictures, each drawn with all its items, {RESAMPLES:,} resamples."]
    return Table("loyalty", "items on which a model agrees with the dense one", heads, rows, notes=notes)


def _loyalty(scores: Scores, of: tuple[str, str, str], pruner: str, sparsity: float) -> tuple[str, ...] | None:
    """Cells: percent, interval, number of items, and what was compared; None if there is nothing to compare."""
    model, task, metric = of
    dense = {run.seed: run for run in scores.runs(model, task, metric, DENSE, 0.0)}
    runs = scores.runs(model, task, metric, pruner, sparsity)
    if not dense or not runs:
        return None
    pairs = [(run, dense.get(run.seed, next(iter(dense.values())))) for run in runs]
    by_answers = all(one.answers for pair in pairs for one in pair)
    same: dict[tuple[int, Id], list[bool]] = {}
    pictures: dict[tuple[int, Id], Hashable] = {}
    for run, other in pairs:
        ours, theirs = (_given(one, metric, by_answers) for one in (run, other))
        if not ours or not theirs:
            return None
        if set(ours) != set(theirs):
            raise InputError(f"{run.id} and {other.id} were tested on different items: run both on the same ones")
        for item, (value, picture) in ours.items():
            same.setdefault(item, []).append(value == theirs[item][0])
            pictures[item] = picture
    shares = np.array([np.mean(of_seeds) for of_seeds in same.values()])
    found = interval(shares, list(pictures.values()))
    words = f"{100 * found[0]:.1f} to {100 * found[1]:.1f}" if found else "too few pictures"
    compared = "answers" if by_answers else f"{metric_words(task, metric)}, right or wrong"
    return f"{100 * shares.mean():.1f}", words, f"{len(shares):,}", compared


def _given(run: Run, metric: str, by_answers: bool) -> Given:
    """The answers of a run, or else its scores; empty if it saved no items."""
    groups = run.items()
    if groups is None:
        return {}
    if not by_answers:
        kinds = enumerate(scores_of(groups, metric))
        return {
            (number, item): (score, kind.pictures[item])
            for number, kind in kinds
            for item, score in kind.scores.items()
        }
    answers = json.loads(zlib.decompress(run.answers))
    items = groups["items"]
    return {(0, item): (answers[str(item)], of) for item, of in zip(items.ids, items.pictures, strict=True)}
