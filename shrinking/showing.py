"""Compare a smaller model with the dense one: sizes, FLOPs, latency, metrics of its task."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from console.results import result_console
from console.words import counted
from evaluation.efficiency.flops import count_flops
from evaluation.efficiency.sizes import count_parameters, file_sizes
from evaluation.efficiency.speed import in_turn
from evaluation.efficiency.table import side_by_side, work_of
from models.base import Model
from models.common.checkpoint import shipped
from models.parts import layers
from models.plans import first_names_of


def meter(name: str, model: Model, size: int) -> Any:
    """A function from a model to its parameters, FLOPs or milliseconds on the CPU, at a batch size."""
    device = torch.device("cpu")
    _, batch, run = work_of(model, None, size, device, torch.float32)

    @torch.no_grad()
    def milliseconds(small: Model) -> float:
        return min(in_turn({"small": lambda: run(small, batch)}, 10, device)["small"])

    return {
        "parameters": lambda small: count_parameters(shipped(small)),
        "flops": lambda small: count_flops(small, lambda: run(small, batch)).total,
        "latency": milliseconds,
    }[name]


def show(name: str, model: Model, small: Model, repeats: int, task: str | None = None) -> dict[str, Any]:
    """Print dense and small side by side: weights by tower, parameters, file, FLOPs, latency at two batch sizes.

    task: whose pass is timed (None: pruning's). Returns {"layers": `left_of`} and for "parameters", "flops" (of one
    sample), "ms 1" and "ms 32" (the least) [dense, small].
    """
    both = {"dense": model, "small": small}
    table = Table(title=f"{name}, on the CPU, {counted(repeats, 'timing')} in turn")
    for column in ("", *both, ""):
        table.add_column(column, justify="right" if table.columns else "left")

    def add(what: str, counts: list[float], form: str = "{:,.0f}", ratio: str = "") -> None:
        table.add_row(what, *map(form.format, counts), ratio or f"{counts[1] / counts[0]:.2f} x")

    found: dict[str, Any] = {"layers": left_of(model, small)}
    for tower, counts in found["layers"].items():
        kept, of = map(sum, zip(*counts.values(), strict=True))
        add(f"weights of {tower}", [of, kept])
    add("file, MB (fp32)", [file_sizes(shipped(one))["fp32"] / 1e6 for one in both.values()], "{:.2f}")
    for size in (1, 32):
        rows = side_by_side(both, size, repeats, torch.device("cpu"), task)
        if size == 1:
            found |= {key: [row[key] for row in rows.values()] for key in ("parameters", "flops")}
            add("parameters", found["parameters"])
        found[f"ms {size}"] = [row["latency_ms"]["least"] for row in rows.values()]
        add(f"FLOPs, batch {size}", [row["flops"] for row in rows.values()])
        for key, ratio in (("least", "fastest"), ("median", "median")):
            times = [row["latency_ms"][key] for row in rows.values()]
            add(f"ms, batch {size} ({key})", times, "{:.2f}", f"{rows['small']['speed'][ratio]:.2f} x as fast")
    result_console().print(table)
    return found


def left_of(model: Model, small: Model) -> dict[str, dict[str, list[int]]]:
    """Modality -> prunable layer of the dense model -> [its weights in the smaller model, in the dense model]."""
    stays = dict(small.plan.stays) if small.plan else {}
    first_name = first_names_of(layers(small), stays)
    left = {first_name(name): layer.weight.numel() for name, layer in small.prunable_layers().items()}
    found: dict[str, dict[str, list[int]]] = {}
    for name, layer in model.prunable_layers().items():
        found.setdefault(model.modality_of(name), {})[name] = [left.get(name, 0), layer.weight.numel()]
    return found


def show_metrics(found: Mapping[str, Mapping[str, float]]) -> None:
    """Print the task's metrics, one column per stage, and the last one's share of the dense model's."""
    table = Table(title="on the test split")
    for column in ("", *found, "share kept"):
        table.add_column(column, justify="right" if table.columns else "left")
    for name, dense in found["dense"].items():
        own = [metrics.get(name) for metrics in found.values()]
        if all(isinstance(value, int | float) for value in own):
            share = f"{100 * own[-1] / dense:.1f} %" if dense else "-"
            table.add_row(name, *(f"{value:.2f}" for value in own), share)
    result_console().print(table)


def conclude(
    args: argparse.Namespace, dense: Model, small: Model, found: Mapping[str, Mapping[str, float]], at: Path
) -> None:
    """Print the comparison, the metrics by stage, and the folder of the smaller model."""
    show(args.model, dense, small, args.repeats, args.task)
    if found:
        show_metrics(found)
    result_console().print(f"{at}: --model small:{at}", markup=False)
