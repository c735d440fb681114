"""The smaller model of a run with --structured, written next to the masked one and compared with it."""

from __future__ import annotations

import shutil
from typing import Any

from rich.table import Table

from console.results import result_console
from evaluation.efficiency.table import side_by_side
from models.base import Model
from models.parts import kept_units
from models.small import save_small
from models.surgery import cut
from training.run import Run
from training.task import Task

FOLDER = "small"
BATCH, REPEATS = 8, 10


def write_small(run: Run, model: Model, task: Task, sparsity: float) -> dict[str, Any]:
    """Write `small/` (`--model small:FOLDER`) and print parameters, FLOPs and milliseconds of both.

    Only units that no weight reads any more are removed, so the outputs are those of the masked model.
    """
    masks = {name: layer.weight.detach() != 0 for name, layer in model.prunable_layers().items()}
    small = cut(model, kept_units(model, masks))
    if not run.leads:
        return {}
    shutil.rmtree(run.folder / FOLDER, ignore_errors=True)  # a run that was killed here may have left it
    save_small(run.folder / FOLDER, small, {"run": str(run.folder), "sparsity_asked": sparsity / 100})
    task.keep(run.folder / FOLDER, small)
    rows = side_by_side({"masked": model, FOLDER: small}, BATCH, REPEATS, run.fabric.device)
    table = Table(title=f"without the pruned units: {run.folder / FOLDER}", caption=f"a pass of {BATCH} samples")
    for column in ("", "parameters", "GFLOPs", "ms", "times as fast"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        ms, speed = row["latency_ms"], row.get("speed", {})
        table.add_row(
            name, f"{row['parameters']:,}", f"{row['flops'] / 1e9:.3g}", f"{ms['median']:.3g}",
            f"{speed['median']:.2f}" if speed else "",
        )  # fmt: skip
    result_console().print(table)
    return rows
