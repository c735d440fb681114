"""The measurements of `evaluation.efficiency`, as tables and sentences."""

from __future__ import annotations

import argparse
import copy
import platform
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import nn

from configs.schema import read_yaml, task_file
from console.errors import InputError
from console.progress import progress_bar
from console.results import result_console
from console.words import counted
from evaluation.efficiency.flops import count_flops
from evaluation.efficiency.sizes import count_parameters, file_sizes
from evaluation.efficiency.speed import WARM_UP, compress_layers, in_turn, obstacle, speed_up, spread
from models import load_model, load_task_model
from models.base import Model, Probe
from models.common.checkpoint import shipped
from sparsity.mask import Mask

DTYPES = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16}
FILES = ("fp32", "fp16", "zipped", "packed")
"""Kinds of files, in the order of the table's columns."""

GAIN = 1.05
"""Smallest ratio that counts as a speed-up; less is noise."""

SCATTER = 0.2
"""A larger distance between quartiles of the speed-up means that other load disturbed the timings."""


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All requested measurements: settings, a row per model, speed-ups over dense, and sentences."""
    device, dtype = chosen_device(args.device), DTYPES[args.precision]
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    mask = Mask.load(args.mask) if args.mask else None
    model = load_for(args.model, args.task, args.weights, conv=bool(mask and mask.source.get("conv")))
    models, words = {"dense": model.eval().requires_grad_(False)}, []
    if mask is not None:
        mask = mask.fitted(model)
        models["masked"] = copy.deepcopy(model)
        mask.apply(models["masked"])
    rows = {name: sizes_row(pruned, mask if name == "masked" else None) for name, pruned in models.items()}
    timed = {name: pruned.to(device, dtype) for name, pruned in models.items()}
    if mask is not None:
        why_not = obstacle(device, dtype, mask)
        if why_not is None:
            timed["2:4"] = copy.deepcopy(timed["masked"])
            done, of = compress_layers(timed["2:4"])
            words.append(f"2:4: {done} of {of} prunable layers are in the 2:4 format, the others stay dense.")
            rows["2:4"] = {}
        else:
            words.append(f"2:4 was not measured: {why_not}.")

    what, batch, run = work_of(model, args.task, args.batch_size, device, dtype)
    work = count_flops(model, lambda: run(model, batch))
    for name, row in rows.items():
        row |= {"flops": work.total, "nominal_flops": work.total if name == "dense" else work.nominal(mask)}
    works = {name: lambda model=model: run(model, batch) for name, model in timed.items()}
    with torch.no_grad(), progress_bar("timing", WARM_UP + args.repeats) as advance:
        times = in_turn(works, args.repeats, device, advance=advance)
    for name, row in rows.items():
        latency = spread(times[name])
        row |= {"latency_ms": latency, "samples_per_second": 1000 * args.batch_size / latency["median"]}
    speeds = {name: speed_up(times["dense"], times[name]) for name in timed if name != "dense"}
    if mask is not None:
        words = [*size_words(rows), *(speed_words(name, speed) for name, speed in speeds.items()), *words]
    return {
        "model": args.model,
        "task": args.task,
        "mask": args.mask,
        "sparsity": None if mask is None else mask.sparsity(),
        "pass": what,
        "batch_size": args.batch_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "precision": args.precision,
        "warm_up": WARM_UP,
        "repeats": args.repeats,
        "rows": [{"name": name} | row for name, row in rows.items()],
        "speed": speeds,
        "words": words,
    }


def side_by_side(
    models: Mapping[str, Model], size: int, repeats: int, device: torch.device, task: str | None = None
) -> dict[str, dict[str, Any]]:
    """Parameters, FLOPs and latency of models that take the same inputs, timed alternately.

    size: samples per pass. task: whose pass is timed (None: pruning's). The models are moved to the device and set to
    eval mode. Each row has `parameters`, `flops`, `latency_ms` (`spread`), and except for the first model `speed`
    (`speed_up` over the first).
    """
    first, whole = next(iter(models.items()))
    _, batch, run = work_of(whole, task, size, device, next(whole.parameters()).dtype)
    works = {name: partial(run, model.eval().to(device), batch) for name, model in models.items()}
    rows: dict[str, dict[str, Any]] = {}
    with torch.no_grad():
        for name, model in models.items():
            flops = count_flops(model, works[name]).total
            rows[name] = {"parameters": count_parameters(shipped(model)), "flops": flops}
        times = in_turn(works, repeats, device)
    for name, row in rows.items():
        row["latency_ms"] = spread(times[name])
        if name != first:
            row["speed"] = speed_up(times[first], times[name])
    return rows


def load_for(name: str, task: str | None, weights: str | None, conv: bool = False) -> Model:
    """The pretraining model, or the task's with the overrides of the task's configuration, such as the image size.

    conv: whether convolutions are prunable, as when the mask was made.
    """
    changes = {"conv": True} if conv else {}
    if task is None:
        return load_model(name, weights=weights, overrides=changes)
    changes = read_yaml(task_file(name, task)).get("model", {}) | changes
    return load_task_model(name, task, weights=weights, overrides=changes)


def work_of(model: Model, task: str | None, size: int, device: torch.device, dtype: torch.dtype) -> Probe:
    """The task's pass, or pruning's, over `size` made-up samples, equal in every call; floating point in `dtype`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if task is not None:
            probe = model.probe(size)
        else:
            words = "a pass through every prunable layer"
            probe = Probe(words, model.example(size)[model.sides[0]], lambda model, batch: model.observe(batch))
    batch = {name: t.to(device, dtype if t.is_floating_point() else t.dtype) for name, t in probe.batch.items()}
    return probe._replace(batch=batch)


def chosen_device(name: str | None) -> torch.device:
    """The device of that name, by default `cuda` if available; InputError if it is missing."""
    count = torch.cuda.device_count()
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device must be cpu, cuda or cuda:<number>, not '{name}'")
    if name != "cpu" and int(name.partition(":")[2] or 0) >= count:
        there = f"cpu or cuda:0 to cuda:{count - 1}" if count else "cpu"
        raise InputError(
            f"--device {name} is missing, this machine has {counted(count, 'CUDA device')}: choose {there}"
        )
    return torch.device(name)


def sizes_row(model: nn.Module, mask: Mask | None) -> dict[str, Any]:
    """Parameters (all, prunable, kept of them) and bytes of files of a model to which `mask` was applied."""
    tensors = shipped(model)
    prunable = sum(layer.weight.numel() for layer in model.prunable_layers().values())
    return {
        "parameters": count_parameters(tensors),
        "prunable": prunable,
        "kept": prunable if mask is None else sum(map(mask.kept, mask)),
        "bytes": file_sizes(tensors, mask),
    }


def size_words(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence on savings in file size and FLOPs."""
    dense, masked = rows["dense"]["bytes"]["fp16"], rows["masked"]["bytes"]
    share = rows["masked"]["nominal_flops"] / rows["dense"]["flops"]
    return [
        f"Size: stored zeros take as many bytes as other numbers ({masked['fp16'] / dense:.2f} x the dense fp16 file); "
        f"zipped it is {masked['zipped'] / dense:.2f} x, packed as bits and kept values {masked['packed'] / dense:.2f} "
        "x.",
        f"Work: {share:.2f} x the FLOPs would remain if pruned weights were skipped.",
    ]


def speed_words(name: str, speed: Mapping[str, float]) -> str:
    """A sentence on the speed-up, its reason, and whether the timings are conclusive."""
    runs = (
        f"{name} runs at {speed['median']:.2f} x the speed of dense (quartiles {speed['low']:.2f} to "
        f"{speed['high']:.2f}; the fastest pass of each: {speed['fastest']:.2f} x)"
    )
    faster = speed["low"] > GAIN and speed["fastest"] > GAIN
    if speed["high"] - speed["low"] > SCATTER and not faster:
        return (
            f"Speed-up unclear: the timings vary too much ({runs}); repeat on a quiet machine, or with more --repeats."
        )
    if name == "2:4":
        return f"Speed: {runs}." if faster else f"No speed-up: even without half of the products, {runs}."
    if faster:
        return f"Speed: {runs}, but no kernel here skips zeros, so the reason is another one (load, clock rates)."
    return f"No speed-up, since zeros are multiplied like any other number: {runs}."


def show(found: Mapping[str, Any]) -> None:
    """Print a table of sizes, one of FLOPs and times, and the sentences."""
    rows, console = found["rows"], result_console()
    of_task = f" for {found['task']}" if found["task"] else ""
    threads = f", {counted(found['threads'], 'thread')}" if found["device"].startswith("cpu") else ""
    about = f"batch {found['batch_size']}, {found['device']}{threads}, precision {found['precision']}"
    stored = _table(
        f"{found['model']}{of_task}: sizes",
        "parameters", "prunable", "kept of these", "fp32 MB", "fp16 MB", "fp16 zipped", "packed",
    )  # fmt: skip
    computed = _table(
        f"{found['pass']}: {about}, {counted(found['repeats'], 'timing')} in turn",
        "GFLOPs", "nominal GFLOPs", "ms (median)", "ms (quartiles)", "ms (fastest)", "samples / s",
    )  # fmt: skip
    for row in rows:
        if "bytes" in row:
            files = [f"{row['bytes'][kind] / 1e6:.2f}" if kind in row["bytes"] else "-" for kind in FILES]
            kept = f"{row['kept']:,} ({100 * row['kept'] / max(1, row['prunable']):.2f} %)"
            stored.add_row(row["name"], f"{row['parameters']:,}", f"{row['prunable']:,}", kept, *files)
        flops = [f"{row[kind] / 1e9:.3f}" for kind in ("flops", "nominal_flops")]
        median, low, high, least = (f"{row['latency_ms'][kind]:.2f}" for kind in ("median", "low", "high", "least"))
        computed.add_row(row["name"], *flops, median, f"{low} - {high}", least, f"{row['samples_per_second']:.1f}")
    console.print(stored)
    console.print(computed)
    for sentence in found["words"]:
        console.print(sentence, highlight=False)


def _table(title: str, *columns: str) -> Table:
    """A table with a first column for the model's name."""
    table = Table(title=title)
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    return table
