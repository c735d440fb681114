"""Checks that need an accelerator, in one script: masks, precisions, kernels, full size, resuming.

    python -m benchmarks.on_device              # at most eight minutes on one GPU
    python -m benchmarks.on_device --small      # the same with small models, also on a CPU

Each part compares the device with the CPU or with itself; the exit code is 1 if a bound is exceeded.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import measuring, streaming
from benchmarks.findings import Finding, add_json
from benchmarks.pruning import SPARSITIES, make_batches, make_model
from console.errors import InputError, run_command

if TYPE_CHECKING:
    import torch

    from sparsity.mask import Mask
    from sparsity.sparsifiers import Sparsifier

MINIS = ("xvlm-mini", "blip-mini", "dino-mini")
STEPS, STOP = 8, 4  # training steps in all, and before the interruption


def masks(args: argparse.Namespace, device: torch.device) -> Iterator[Finding]:
    """Every method's mask on the device against its mask on the CPU: the share of bits that differ.

    Another order of summation moves a few weights across the threshold; later rounds and layers amplify this.
    """
    from pruners import PRUNERS, prune

    for name in MINIS[: 1 if args.small else None]:
        made = make_model(name)
        for pruner in PRUNERS:
            method = PRUNERS[pruner]
            options = {"epochs": 2} if "epochs" in getattr(method.Options, "__dataclass_fields__", {}) else {}
            found = []
            for place in ("cpu", device):
                model = copy.deepcopy(made).to(place)  # a copy, since some methods update weights
                batches = make_batches(model, 4, 2) if method.uses_data else []
                found.append(prune(model, batches, pruner, (0.75,), **options)[0.75])
            chained = method.uses_rounds or method.updates_weights
            most = 0.0 if not method.uses_data else 0.03 if chained else 0.003
            yield Finding(f"{name} {pruner}, share of bits that differ", differing(*found), most)


def differing(one: Mask, other: Mask) -> float:
    """The share of weights that one mask keeps and the other prunes."""
    bits = sum(one[name].numel() for name in one)
    return sum(int((one[name] != other[name]).sum()) for name in one) / bits


def precisions(args: argparse.Namespace, device: torch.device) -> Iterator[Finding]:
    """Some steps of finetuning under a mask in each precision: losses as in float32, pruned weights exactly zero."""
    known: float | None = None
    kinds = ("32-true", "bf16-mixed", "bf16-true", *(("16-mixed",) if device.type == "cuda" else ()))
    for precision in kinds:
        with tempfile.TemporaryDirectory() as folder:
            losses = trained(args, Path(folder), precision)
        yield Finding(f"{precision}, last loss relative to the first", losses[-1] / losses[0], 1.0)
        if known is not None:
            yield Finding(f"{precision}, last loss off float32's, relative", abs(losses[-1] / known - 1), 0.1)
        known = losses[-1] if known is None else known


def trained(
    args: argparse.Namespace,
    folder: Path,
    precision: str,
    stop: int | None = None,
    sparsifier: Sparsifier | None = None,
    accelerator: str = "auto",
) -> list[float]:
    """Train for `STEPS` steps on one batch, or until `stop`; returns the losses of the steps of this call.

    sparsifier: by default a mask at 75 %.
    """
    import torch
    from lightning.fabric import Fabric

    from benchmarks.sparse_step import made_up_pairs
    from configs.schema import parse, read_yaml, task_file
    from models import load_task_model
    from pruners import prune
    from sparsity.sparsifiers import Fixed
    from tasks.retrieval import Retrieval, RetrievalConfig
    from training.loop import Callback, Loop, fit
    from training.optimizer import Recipe
    from training.task import Objective

    torch.manual_seed(0)  # so that each call has the same batch
    name = "xvlm-mini" if args.small else "xvlm"
    path = task_file(name, "retrieval")
    config = parse(RetrievalConfig, read_yaml(path), str(path))
    sparsifier = sparsifier or Fixed(prune(make_model(name), [], "omp", (0.75,))[0.75])
    model = load_task_model(name, "retrieval", weights="random", overrides={**config.model, "text": {"dropout": 0.0}})
    sparsifier.attach(model)
    sparsifier.started(STEPS, 0)
    batch = made_up_pairs(model, config, 4)
    task = Retrieval.__new__(Retrieval)  # only for its losses: __init__ would open data
    task._config, task._moved = config, None
    losses: list[float] = []

    def log(row: dict[str, Any]) -> None:
        losses.append(sum(value for key, value in row.items() if key not in ("step", "lr")))
        if row["step"] == stop:
            raise KeyboardInterrupt

    def batches(first: int) -> Iterator[Any]:
        while True:
            yield batch

    loop = Loop(
        "steps", Recipe(lr=1e-4, clip=1.0), STEPS, 0, folder, {}, log_every=1, sparsifier=sparsifier,
        snapshot_seconds=math.inf if stop is None else 0.0, callbacks=[Callback(after_log=log)],
    )  # fmt: skip
    fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    try:
        fit(fabric, Objective(model, task, STEPS), batches, loop)
    except KeyboardInterrupt:
        if stop is None:
            raise
    sparsifier.check()
    return losses


def kernels(args: argparse.Namespace, device: torch.device) -> Iterator[Finding]:
    """A linear layer in the device's 2:4 format: its output and its speed against the dense layer."""
    import torch
    from torch.nn.functional import linear

    from evaluation.efficiency.speed import compressed, in_turn, obstacle, spread

    if why_not := obstacle(device, torch.half):
        yield Finding("2:4 multiplication", f"not available: {why_not}")
        return
    torch.manual_seed(0)
    for rows, columns in ((768, 768), (3072, 768), (768, 3072)):
        dense = torch.randn(rows, columns, device=device, dtype=torch.half)
        dense.view(rows, -1, 4)[..., 2:] = 0
        sparse, x = compressed(dense), torch.randn(8192, columns, device=device, dtype=torch.half)
        off = (linear(x, sparse) - linear(x, dense)).norm() / linear(x, dense).norm()
        yield Finding(f"{rows} x {columns}, 2:4 off dense, relative", float(off), 1e-2)
        works = {"dense": lambda x=x, w=dense: linear(x, w), "2:4": lambda x=x, w=sparse: linear(x, w)}
        times = {kind: spread(taken)["median"] for kind, taken in in_turn(works, 30, device, warm_up=5).items()}
        yield Finding(f"{rows} x {columns}, times faster than dense", times["dense"] / times["2:4"])


def full_size(args: argparse.Namespace, device: torch.device) -> Iterator[Finding]:
    """MULTIFLOW at three sparsities: seconds and memory compared with a forward pass over the same batches."""
    import torch

    from benchmarks.pruning import bare_forward
    from calibration.stream import to_device
    from pruners import prune

    model = make_model("xvlm-mini" if args.small else "xvlm").to(device)
    batches = [to_device(batch, device) for batch in make_batches(model, 8, 4)]
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        bare_forward(model, batches)
        synchronize(device)
        bare = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    found = prune(model, batches, "multiflow", SPARSITIES)
    synchronize(device)
    seconds = time.perf_counter() - started
    yield Finding("forward passes, seconds", bare)
    yield Finding("MULTIFLOW at three sparsities, seconds", seconds)
    if device.type == "cuda":
        yield Finding("MULTIFLOW, peak memory, GB", torch.cuda.max_memory_allocated() / 1e9)
    yield Finding("sparsity off what was asked", max(abs(m.sparsity() - s) for s, m in found.items()), 1e-4)


def resuming(args: argparse.Namespace, device: torch.device) -> Iterator[Finding]:
    """A finetuning run that is interrupted and resumed has the losses of an uninterrupted one."""
    with tempfile.TemporaryDirectory() as folder:
        whole = trained(args, Path(folder, "whole"), "32-true")
        first = trained(args, Path(folder, "broken"), "32-true", stop=STOP)
        rest = trained(args, Path(folder, "broken"), "32-true")
    resumed = [*first[: STEPS - len(rest)], *rest]
    yield Finding("steps done again", len(first) + len(rest) - STEPS, 1)
    off = max(abs(a - b) / a for a, b in zip(whole, resumed, strict=True))
    yield Finding("losses off an uninterrupted run's, relative", off, 1e-4 if device.type == "cuda" else 0.0)


def progressive(args: argparse.Namespace, device: torch.device) -> Iterator[Finding]:
    """Pruning while training, and intrinsic dimensions, on the device against the CPU."""
    import torch

    from calibration.layer_outputs import output_shapes, plan_passes, squared_distances
    from calibration.stream import to_device
    from inspection.two_nn import dimension_of
    from sparsity.progressive import Progressive
    from sparsity.progressive_config import METHODS, ProgressiveConfig

    for method in METHODS:
        masks = []
        for accelerator in ("cpu", "auto"):
            sparsifier = Progressive(ProgressiveConfig(prune=method, sparsity=75.0, interval=2), None)
            with tempfile.TemporaryDirectory() as folder:
                trained(args, Path(folder), "32-true", sparsifier=sparsifier, accelerator=accelerator)
            masks.append(sparsifier.mask)
        yield Finding(f"{method}, share of bits that differ", differing(*masks), 0.02)

    found = []
    for place in ("cpu", device):
        model = make_model("xvlm-mini").to(place)
        batches = [pair[model.sides[0]] for pair in make_batches(model, 8, 8)]

        def run(model: Any, batch: Any) -> None:
            model.observe(batch)

        shapes = output_shapes(model, to_device(batches[0], torch.device(place)), run, None)
        passes = plan_passes(shapes, 64, 1e9)
        squares = squared_distances(model, lambda batches=batches: iter(batches), 64, passes, run)
        found.append({name: dimension_of(table.numpy(), 4).dimension for name, table in squares})
    off = max(abs(found[1][name] / value - 1) for name, value in found[0].items())
    yield Finding("intrinsic dimensions, largest relative difference", off, 1e-3)


def prompts(args: argparse.Namespace, device: torch.device) -> Iterator[Finding]:
    """The search behind a visual prompt: cuts, gradients and the cost of a step."""
    import torch

    from benchmarks.sparse_step import SEARCH_BOUND, search_ratios
    from models import load_task_model
    from models.prompts import VisualPrompt
    from sparsity.progressive_config import ProgressiveConfig
    from sparsity.search import Search

    masks, gradients = [], []
    x = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for place in ("cpu", device):
        network = load_task_model("resnet-mini", "image_classification").to(place).eval()
        search = Search(ProgressiveConfig(prune="vpns", sparsity=90.0), None)
        search.attach(network)
        masks.append(search.mask)
        prompt = VisualPrompt(side=64, width=5).to(place)
        network.logits(prompt(x.to(place))).logsumexp(dim=1).sum().backward()
        gradients.append(prompt.program.grad.cpu())
    yield Finding("resnet-mini, first cut, share of bits that differ", differing(*masks), 1e-5)
    off = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    yield Finding("gradient of the prompt, relative difference", float(off), 1e-2)
    name, size = ("dino-mini", 4) if args.small else ("timm:resnet18", 64)
    ratios = search_ratios(name, size, 0.9, 3 if args.small else 20, str(device))
    # Without a bound for --small: timings on a shared CPU with few pictures are too noisy.
    bound = None if args.small else SEARCH_BOUND
    yield Finding(f"{name}, a step of the search / two passes, median", sorted(ratios)[len(ratios) // 2], bound)


PARTS: dict[str, Callable[[argparse.Namespace, Any], Iterator[Finding]]] = {
    "masks": masks,
    "precisions": precisions,
    "kernels": kernels,
    "full_size": full_size,
    "resuming": resuming,
    "progressive": progressive,
    "prompts": prompts,
    "smaller": measuring.on_device,
    "streaming": streaming.on_device,
}


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small models, on a CPU where there is no GPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    add_json(parser)
    return parser.parse_args()


def main() -> None:
    """Run the parts and print each finding as it comes."""
    args = parse_args()

    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.small:
        raise InputError("there is no GPU here: give --small to try the script on the CPU")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    found: dict[str, list[dict[str, Any]]] = {}
    broken = 0
    for part in args.parts:
        started = time.perf_counter()
        print(f"\n{part}", flush=True)
        found[part] = []
        for finding in PARTS[part](args, device):
            print(f"  {finding}", flush=True)
            found[part].append(asdict(finding))
            broken += finding.broken
        print(f"  {time.perf_counter() - started:.0f} s", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps({"device": name, "torch": torch.__version__, "found": found}, indent=1))
    if broken:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
