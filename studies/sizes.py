"""What smaller models are: parameters, FLOPs, milliseconds beside the dense model's; and what they score for that."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from models import file_name
from sparsity.percents import percent
from studies.plan import DENSE
from studies.reading import Results
from studies.tables import Cell, Row, Table, number

AXES = {
    "parameters": ("parameters, M", 1e6),
    "flops": ("MFLOPs a sample", 1e6),
    "ms 1": ("ms, batch 1", 1.0),
    "ms 32": ("ms, batch 32", 1.0),
}
"""Of a smaller model -> words, and what a number is divided by for them."""

COUNTED = ("parameters", "flops")
PARETO = {"parameters": "parameters, % of dense", "ms 32": "time at batch 32, % of dense"}
"""Axes of pictures, and their words: relative to dense, since milliseconds compare within a run alone."""

Sizes = dict[tuple[str, float], dict[str, tuple[float, float]]]
"""Row and sparsity in percent -> axis -> [dense, small], means over seeds, in the axis's unit."""


def sizes_of(results: Results, model: str, pruners: Sequence[str], sparsities: Sequence[float]) -> Sizes:
    """Of a model's rows that make smaller models."""
    found: Sizes = {}
    for sparsity in sparsities:
        for pruner in pruners:
            runs = [run.result.metrics.get(percent(sparsity / 100), {}) for run in results.prunings_of(model, pruner)]
            if runs := [run for run in runs if "parameters" in run]:
                found[pruner, sparsity] = {
                    axis: tuple(statistics.fmean(run[axis][side] for run in runs) / unit for side in (0, 1))
                    for axis, (_, unit) in AXES.items()
                }
    return found


def size_table(model: str, sizes: Sizes) -> Table:
    """A row each, below the sparsity that was asked for."""

    def cells(both: Mapping[str, tuple[float, float]], side: int) -> list[Cell]:
        shares = [f"{100 * pair[1] / pair[0]:.1f}" if side and axis in COUNTED else "" for axis, pair in both.items()]
        made = [Cell(number(pair[side]), share=share) for pair, share in zip(both.values(), shares, strict=True)]
        return made + [
            Cell(number(both[axis][0] / both[axis][1]) if side else "") for axis in both if axis not in COUNTED
        ]

    rows = []
    if sizes:
        rows.append(Row(DENSE, cells(next(iter(sizes.values())), 0), "dense"))
    for sparsity in dict.fromkeys(asked for _, asked in sizes):
        rows.append(Row(f"{percent(sparsity / 100)} %", [], "section"))
        rows += [Row(name, cells(both, 1)) for (name, asked), both in sizes.items() if asked == sparsity]
    faster = [(f"times as fast, {AXES[axis][0].partition(', ')[2]}", 1) for axis in AXES if axis not in COUNTED]
    heads = [[(words, 1) for words, _ in AXES.values()] + faster]
    notes = [
        "Means over seeds, of the pretraining model; below it percent of dense.",
        "Milliseconds: the least of several, dense and small in turn within one run. They compare within a row: other "
        "work disturbs each run in its own way.",
    ]
    return Table(f"{file_name(model)}_sizes", f"{model}: what smaller models are", heads, rows, notes=notes)
