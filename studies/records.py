"""All numbers of a report as CSV files, not rounded."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sparsity.percents import percent
from studies.layers import LayerShares
from studies.published import Published
from studies.reading import Results
from studies.rows import UNPRUNED
from studies.scores import Score, Scores

SCORES = (
    "model", "task", "metric", "pruner", "sparsity", "seeds", "mean", "sd", "share_of_dense", "rank", "p", "against",
)  # fmt: skip
RUNS = ("model", "task", "metric", "pruner", "sparsity", "seed", "value", "seconds", "peak_memory_gb", "result")
LAYERS = ("model", "sparsity", "pruner", "modality", "layer", "weights", "pruned")
PUBLISHED = ("model", "task", "metric", "pruner", "sparsity", "ours", "published", "difference")

Rows = Iterator[tuple[Any, ...]]


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV with a head; None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def score_rows(scores: Scores) -> Rows:
    """A row for each number of the tables."""

    def row(model: str, task: str, metric: str, pruner: str, sparsity: float, score: Score) -> tuple[Any, ...]:
        return (
            model, task, metric, pruner, percent(sparsity / 100), len(score.values), score.mean, score.sd, score.share,
            score.rank or None, score.p, score.against or None,
        )  # fmt: skip

    for model in scores.models:
        for task in scores.tasks(model):
            for metric in scores.metrics(model, task):
                for name in UNPRUNED:
                    if (score := scores.get(model, task, metric, name, 0.0)) is not None:
                        yield row(model, task, metric, name, 0.0, score)
                for sparsity in scores.sparsities(model):
                    for pruner, score in scores.column((model, task, metric, sparsity)).items():
                        yield row(model, task, metric, pruner, sparsity, score)


def run_rows(results: Results) -> Rows:
    """A row for each metric of each run."""
    for run in results.tasks:
        cost = (run.result.seconds, run.result.peak_memory_gb)
        for metric, value in run.metrics.items():
            yield run.model, run.task, metric, run.pruner, percent(run.sparsity / 100), run.seed, value, *cost, run.id


def layer_rows(model: str, shares: Mapping[float, LayerShares]) -> Rows:
    """A row for each layer of each pruner."""
    for sparsity, found in shares.items():
        for pruner, layers in found.pruned.items():
            for modality, names in found.modalities.items():
                for name in names:
                    pruned = round(layers[name], 6)
                    yield model, percent(sparsity / 100), pruner, modality, name, found.sizes[name], pruned


def published_rows(scores: Scores, published: Published) -> Rows:
    """A row for each published number, with ours if there is one."""
    for (model, task, metric, pruner, sparsity), value in published.values.items():
        score = scores.get(model, task, metric, pruner, sparsity)
        ours, gap = (None, None) if score is None else (score.mean, score.mean - value)
        yield model, task, metric, pruner, percent(sparsity / 100), ours, value, gap
