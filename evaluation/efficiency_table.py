"""The measurements behind `evaluation.efficiency`, as rows and in words."""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table
from torch import nn

from configs.schema import read_yaml, task_file
from console.errors import InputError
from console.progress import progress_bar
from console.results import result_console
from console.words import counted
from evaluation import semi_structured
from evaluation.file_sizes import count_parameters, file_sizes, shipped
from evaluation.flops import count_flops
from evaluation.timing import WARM_UP, Speed, Spread, in_turn
from models import load_model, load_task_model
from models.base import Model, Probe
from sparsity.mask import Mask

DTYPES = {"32-true": torch.float32, "16-true": torch.float16, "bf16-true": torch.bfloat16}
FILES = ("fp32", "fp16", "zipped", "packed")
"""Kinds of files, in the order of the table's columns."""

GAIN = 1.05
"""A speed-up counts from here on; what is below is noise of the clock."""

SCATTER = 0.2
"""Quartiles of speeds further apart than this come from a disturbed machine."""


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything the command line asks for: what was measured, a row a model, speeds beside dense, and words."""
    device, dtype = chosen_device(args.device), DTYPES[args.precision]
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    mask = Mask.load(args.mask) if args.mask else None
    model = load_for(args.model, args.task, args.weights).eval().requires_grad_(False)
    models, words = {"dense": model}, []
    if mask is not None:
        mask = mask.fitted(model)
        models["masked"] = copy.deepcopy(model)
        mask.apply(models["masked"])
    rows = {name: sizes_row(pruned, mask if name == "masked" else None) for name, pruned in models.items()}
    timed = {name: pruned.to(device, dtype) for name, pruned in models.items()}
    if mask is not None:
        why_not = semi_structured.obstacle(device, dtype, mask)
        if why_not is None:
            timed["2:4"] = copy.deepcopy(timed["masked"])
            done, of = semi_structured.compress_layers(timed["2:4"])
            words.append(f"2:4: {done} of {of} prunable layers are in the 2:4 format, the others stay dense.")
            rows["2:4"] = {}
        else:
            words.append(f"2:4 was not measured: {why_not}.")

    what, batch, run = work_of(model, args.task, args.batch_size, device, dtype)
    work = count_flops(model, lambda: run(model, batch))
    for name, row in rows.items():
        row |= {"flops": work.total, "nominal_flops": work.total if name == "dense" else work.nominal(mask)}
    times = timings(timed, run, batch, args.repeats, device)
    for name, row in rows.items():
        latency = Spread.of(times[name])
        row |= {"latency_ms": asdict(latency), "samples_per_second": 1000 * args.batch_size / latency.median}
    speeds = {name: Speed.of(times["dense"], times[name]) for name in timed if name != "dense"}
    if mask is not None:
        words = [*size_words(rows), *(speed_words(name, ratio) for name, ratio in speeds.items()), *words]
    return {
        "model": args.model,
        "task": args.task,
        "mask": args.mask,
        "sparsity": None if mask is None else mask.sparsity(),
        "pass": what,
        "batch_size": args.batch_size,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": args.precision,
        "warm_up": WARM_UP,
        "repeats": args.repeats,
        "rows": [{"name": name} | row for name, row in rows.items()],
        "speed": {name: asdict(ratio) for name, ratio in speeds.items()},
        "words": words,
    }


def load_for(name: str, task: str | None, weights: str | None) -> Model:
    """The pretraining model, or the task's with what the task's configuration changes of it (image size)."""
    if task is None:
        return load_model(name, weights=weights)
    return load_task_model(name, task, weights=weights, overrides=read_yaml(task_file(name, task)).get("model", {}))


def work_of(model: Model, task: str | None, size: int, device: torch.device, dtype: torch.dtype) -> Probe:
    """The task's pass, or pruning's, over the same `size` made-up samples on every call; floating point in `dtype`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if task is not None:
            probe = model.probe(size)
        else:
            words = "the pass in which every prunable layer is met"
            probe = Probe(words, model.example(size)[model.sides[0]], lambda model, batch: model.observe(batch))
    batch = {name: t.to(device, dtype if t.is_floating_point() else t.dtype) for name, t in probe.batch.items()}
    return probe._replace(batch=batch)


def chosen_device(name: str | None) -> torch.device:
    """The device of that name, `cuda` where there is one without; InputError when it is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (":" in name and not number.isdecimal())):
        raise InputError(f"--device must be cpu, cuda or cuda:<number>, not '{name}'")
    count = torch.cuda.device_count()
    if kind == "cuda" and int(number or 0) >= count:
        raise InputError(
            f"--device {name} is not there, this machine has {counted(count, 'CUDA device')}: choose "
            + ("cpu" if count == 0 else f"cpu or cuda:0 to cuda:{count - 1}")
        )
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


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


@torch.no_grad()
def timings(
    models: Mapping[str, nn.Module], run: Any, batch: dict[str, torch.Tensor], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Milliseconds of each model's passes over one batch, all models in turn."""
    works = {name: lambda model=model: run(model, batch) for name, model in models.items()}
    with progress_bar("timing", WARM_UP + repeats) as advance:
        return in_turn(works, repeats, device, advance=advance)


def size_words(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the mask spares on disk and in products."""
    dense, masked = rows["dense"]["bytes"]["fp16"], rows["masked"]["bytes"]
    share = rows["masked"]["nominal_flops"] / rows["dense"]["flops"]
    return [
        f"Size: zeros take as much room as other numbers ({masked['fp16'] / dense:.2f} x the dense fp16 file); zipped "
        f"it is {masked['zipped'] / dense:.2f} x, packed as bits and kept values {masked['packed'] / dense:.2f} x.",
        f"Work: {share:.2f} x the FLOPs would be left if pruned weights cost nothing.",
    ]


def speed_words(name: str, speed: Speed) -> str:
    """Whether a model is faster than dense, why not, and whether the timings can tell."""
    runs = (
        f"{name} runs at {speed.median:.2f} x the speed of dense (quartiles {speed.low:.2f} to {speed.high:.2f}; "
        f"the fastest pass of each: {speed.fastest:.2f} x)"
    )
    faster = speed.low > GAIN and speed.fastest > GAIN
    if speed.high - speed.low > SCATTER and not faster:
        return (
            f"No speed-up to be seen: the timings scatter too much to tell ({runs}); repeat it on a quiet machine, or "
            "with more --repeats."
        )
    if name == "2:4":
        words = f"Speed: {runs}." if faster else f"No speed-up: even without half of the products, {runs}."
    elif faster:
        words = f"Speed: {runs}, but nothing here skips zeros: look for the reason elsewhere (other work, clock rates)."
    else:
        words = f"No speed-up: zeros are multiplied like any other number: {runs}."
    return words


def show(found: Mapping[str, Any]) -> None:
    """Print a table of what is stored, one of what is computed, and the words."""
    rows, console = found["rows"], result_console()
    of_task = f" for {found['task']}" if found["task"] else ""
    stored = Table(title=f"{found['model']}{of_task}: what is stored")
    for column in ("", "parameters", "prunable", "kept of these", "fp32 MB", "fp16 MB", "fp16 zipped", "packed"):
        stored.add_column(column, justify="right" if column else "left")
    for row in rows:
        if "bytes" not in row:
            continue
        files = [f"{row['bytes'][kind] / 1e6:.2f}" if kind in row["bytes"] else "-" for kind in FILES]
        kept = f"{row['kept']:,} ({100 * row['kept'] / row['prunable']:.2f} %)"
        stored.add_row(row["name"], f"{row['parameters']:,}", f"{row['prunable']:,}", kept, *files)
    console.print(stored)
    threads = f", {counted(found['threads'], 'thread')}" if found["device"].startswith("cpu") else ""
    about = f"batch {found['batch_size']}, {found['device']}{threads}, precision {found['precision']}"
    computed = Table(title=f"{found['pass']}: {about}, {counted(found['repeats'], 'timing')} in turn")
    for column in ("", "GFLOPs", "nominal GFLOPs", "ms (median)", "ms (quartiles)", "ms (fastest)", "samples / s"):
        computed.add_column(column, justify="right" if column else "left")
    for row in rows:
        spread = row["latency_ms"]
        computed.add_row(
            row["name"],
            f"{row['flops'] / 1e9:.3f}",
            f"{row['nominal_flops'] / 1e9:.3f}",
            f"{spread['median']:.2f}",
            f"{spread['low']:.2f} - {spread['high']:.2f}",
            f"{spread['least']:.2f}",
            f"{row['samples_per_second']:.1f}",
        )
    console.print(computed)
    for sentence in found["words"]:
        console.print(sentence, highlight=False)
