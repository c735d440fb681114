"""Sizes of smaller models compared with the dense one: parameters, FLOPs, time."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from models import file_name
from sparsity.percents import percent
from studies.plan import DENSE
from studies.reading import Results
from studies.tables import Cell, Row, Table, number

COUNTED = {"parameters": "parameters, M", "flops": "MFLOPs a sample"}
TIMED = {"ms 1": "times as fast, batch 1", "ms 32": "times as fast, batch 32"}
"""Measured sizes -> headers of the table."""

PARETO = {"parameters": "parameters, % of dense", "ms 32": "time at batch 32, % of dense"}
"""Axes of pictures -> labels; relative to dense, since milliseconds are comparable within one run only."""

Sizes = dict[tuple[str, float], dict[str, tuple[float, float]]]
"""Row and sparsity in percent -> axis -> [dense, small], means over seeds; counts in millions."""


def sizes_of(results: Results, model: str, pruners: Sequence[str], sparsities: Sequence[float]) -> Sizes:
    """The sizes of all smaller models of a model."""
    found: Sizes = {}
    for sparsity in sparsities:
        for pruner in pruners:
            runs = [run.result.metrics.get(percent(sparsity / 100), {}) for run in results.prunings_of(model, pruner)]
            if runs := [run for run in runs if "parameters" in run]:
                found[pruner, sparsity] = {
                    axis: tuple(statistics.fmean(run[axis][side] for run in runs) / unit for side in (0, 1))
                    for axis, unit in (*((axis, 1e6) for axis in COUNTED), *((axis, 1.0) for axis in TIMED))
                }
    return found


def size_table(model: str, sizes: Sizes) -> Table:
    """A row for each smaller model, in a section per requested sparsity."""

    def cells(both: Mapping[str, tuple[float, float]], side: int) -> list[Cell]:
        counts = [
            Cell(number(both[axis][side]), share=f"{100 * both[axis][1] / both[axis][0]:.1f}" if side else "")
            for axis in COUNTED
        ]
        return counts + [Cell(f"{both[axis][0] / both[axis][side]:.2f}") for axis in TIMED]

    rows = []
    if sizes:
        rows.append(Row(DENSE, cells(next(iter(sizes.values())), 0), "dense"))
    for sparsity in dict.fromkeys(asked for _, asked in sizes):
        rows.append(Row(f"{percent(sparsity / 100)} %", [], "section"))
        rows += [Row(name, cells(both, 1)) for (name, asked), both in sizes.items() if asked == sparsity]
    heads = [[(words, 1) for words in (*COUNTED.values(), *TIMED.values())]]
    notes = [
        "Means over seeds, of the pretraining model; in brackets percent of dense.",
        "Speed: the least of several times, dense and small alternating within one run.",
    ]
    return Table(f"{file_name(model)}_sizes", f"{model}: sizes of smaller models", heads, rows, notes=notes)
