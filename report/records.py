"""All numbers of a report as rows of CSV files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from grid.places import short
from grid.steps import DENSE
from report.layers import LayerShares
from report.published import Published
from report.reading import Results
from report.scores import Score, Scores
from sparsity.percents import percent

SCORES = (
    "model", "task", "metric", "pruner", "sparsity", "seeds", "mean", "sd", "share_of_dense", "rank", "p", "against",
)  # fmt: skip
RUNS = ("model", "task", "metric", "pruner", "sparsity", "seed", "value", "seconds", "peak_memory_gb", "result")
LAYERS = ("model", "sparsity", "pruner", "modality", "layer", "weights", "pruned")
PUBLISHED = ("model", "task", "metric", "pruner", "sparsity", "ours", "published", "difference")

Record = dict[str, Any]


def score_records(scores: Scores) -> Iterator[Record]:
    """A row for each number of the tables; numbers as they are, not as they are shown."""
    for model in scores.models:
        for task in scores.tasks(model):
            for metric in scores.metrics(model, task):
                if (dense := scores.dense(model, task, metric)) is not None:
                    yield _score(model, task, metric, DENSE, 0.0, dense)
                for sparsity in scores.sparsities(model):
                    for pruner, score in scores.column((model, task, metric, sparsity)).items():
                        yield _score(model, task, metric, pruner, sparsity, score)


def run_records(results: Results) -> Iterator[Record]:
    """A row for each metric of each run."""
    for run in results.tasks:
        for metric, value in run.metrics.items():
            yield {
                "model": run.model,
                "task": run.task,
                "metric": metric,
                "pruner": run.pruner,
                "sparsity": percent(run.sparsity / 100),
                "seed": run.seed,
                "value": value,
                "seconds": run.result.get("seconds"),
                "peak_memory_gb": run.result.get("peak_memory_gb"),
                "result": short(run.path),
            }


def layer_records(model: str, shares: dict[float, LayerShares]) -> Iterator[Record]:
    """A row for each layer of each pruner."""
    for sparsity, found in shares.items():
        for pruner, layers in found.pruned.items():
            for modality, names in found.modalities.items():
                for name in names:
                    yield {
                        "model": model,
                        "sparsity": percent(sparsity / 100),
                        "pruner": pruner,
                        "modality": modality,
                        "layer": name,
                        "weights": found.sizes[name],
                        "pruned": round(layers[name], 6),
                    }


def published_records(scores: Scores, published: Published) -> Iterator[Record]:
    """A row for each published number, with ours where there is one."""
    for (model, task, metric, pruner, sparsity), value in published.values.items():
        known = model in scores.models and task in scores.known
        score: Score | None = None
        if known:
            dense = pruner == DENSE
            score = scores.dense(model, task, metric) if dense else scores.get(model, task, metric, pruner, sparsity)
        yield {
            "model": model,
            "task": task,
            "metric": metric,
            "pruner": pruner,
            "sparsity": percent(sparsity / 100),
            "ours": None if score is None else score.mean,
            "published": value,
            "difference": None if score is None else score.mean - value,
        }


def _score(model: str, task: str, metric: str, pruner: str, sparsity: float, score: Score) -> Record:
    return {
        "model": model,
        "task": task,
        "metric": metric,
        "pruner": pruner,
        "sparsity": percent(sparsity / 100),
        "seeds": len(score.values),
        "mean": score.mean,
        "sd": score.sd,
        "share_of_dense": score.share,
        "rank": score.rank or None,
        "p": score.p,
        "against": score.against or None,
    }
