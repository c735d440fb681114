"""Time and memory of pruning on full-size X-VLM with random weights: ratios measured in one run.

    python -m benchmarks.pruning            # batch 8, 4 general + 4 region batches, for which the bounds are set
Peak memory is measured in a process of its own for each method (largest resident set).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from benchmarks.findings import Finding, add_json, report
from benchmarks.timing import add_clock, best_of, memory_in_use
from console.errors import run_command

SPARSITIES = (0.63, 0.75, 0.9)
KINDS = ("forward", "backward", "memory")


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="xvlm", help="model whose configuration is built with random weights")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4, help="number of general batches, and of region batches")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each kind, alternating; the best counts")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=KINDS, help="what to measure: methods with forward passes, ..."
    )
    add_clock(parser)
    parser.add_argument("--memory", metavar="METHOD", help="only print the peak memory of one method, as JSON")
    add_json(parser)
    return parser.parse_args()


def make_model(name: str):
    """The model with random weights."""
    from models import load_model

    return load_model(name, weights="random")


def make_batches(model, batch_size: int, count: int) -> list[dict]:
    """Made-up batches with the real shapes."""
    import torch

    torch.manual_seed(0)
    return [model.example(batch_size) for _ in range(count)]


def bare_forward(model, batches: list[dict]) -> None:
    """The forward passes that MULTIFLOW needs, without its statistics."""
    import torch

    with torch.no_grad():
        for pair in batches:
            for batch in pair.values():
                model.observe(batch)


def bare_backward(model, batches: Iterable[dict]) -> None:
    """Forward and backward passes of SNIP's losses, with gradients of the prunable weights only."""
    layers = model.prunable_layers()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    for pair in batches:
        for batch in pair.values():
            model.loss(batch).backward()
    for layer in layers.values():
        layer.weight.grad = None


def peak_memory(method: str, args: argparse.Namespace) -> dict[str, int]:
    """Bytes in use before one method and at its peak; runs in a fresh process."""
    from pruners import PRUNERS, prune

    model = make_model(args.model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    needs_data = method in ("forward", "backward") or (method in PRUNERS and PRUNERS[method].uses_data)
    batches = make_batches(model, args.batch_size, 1) if needs_data else []
    before = memory_in_use("VmHWM")
    if method == "forward":
        bare_forward(model, batches)
    elif method == "backward":
        bare_backward(model, batches)
    elif method != "nothing":
        prune(model, batches, method, SPARSITIES)
    peak = memory_in_use("VmHWM")
    return {"weights": weights, "before": before, "peak": peak}


def memory(args: argparse.Namespace) -> Iterator[Finding]:
    """Peak memory of each method, relative to the weights and to that of the passes that it needs."""
    held = {}
    for method in ("nothing", "omp", "l2", "lamp", "forward", "multiflow", "backward", "snip"):
        command = [sys.executable, "-m", "benchmarks.pruning", "--memory", method, "--model", args.model]
        command += ["--batch_size", str(args.batch_size)]
        held[method] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        yield Finding(f"peak memory of {method}, in weights", held[method]["peak"] / held[method]["weights"])
    for method, passes, bound in (("multiflow", "forward", 1.05), ("snip", "backward", 1.1)):
        peaks = held[method]["peak"] / held[passes]["peak"]
        yield Finding(f"peak memory of {method} / of its {passes} passes", peaks, bound)


def times(args: argparse.Namespace) -> Iterator[Finding]:
    """Pruning over the bare passes, alternating; also prints seconds."""
    from calibration.statistics import InputNorms
    from pruners import prune
    from pruners.session import Session

    model = make_model(args.model)
    batches = make_batches(model, args.batch_size, args.batches)
    omp, multiflow, lamp, snip = "omp", "multiflow, three sparsities", "lamp, three sparsities", "snip"
    forward: dict[str, Callable[[], object]] = {
        "bare forward": lambda: bare_forward(model, batches),
        omp: lambda: prune(model, [], "omp", (0.75,)),
        multiflow: lambda: prune(model, batches, "multiflow", SPARSITIES),
        lamp: lambda: prune(model, [], "lamp", SPARSITIES),
    }
    backward: dict[str, Callable[[], object]] = {
        "bare forward + backward": lambda: bare_backward(model, batches),
        snip: lambda: prune(model, batches, "snip", (0.75,)),
    }
    kinds = (forward if "forward" in args.kinds else {}) | (backward if "backward" in args.kinds else {})
    best = best_of(kinds, args.repeats, args.cpu_time)
    if backward.keys() <= best.keys():
        yield Finding("snip / (forward + backward)", best[snip] / best["bare forward + backward"], 1.1)
    if not forward.keys() <= best.keys():
        return
    yield Finding("multiflow at three sparsities / forward passes", best[multiflow] / best["bare forward"], 1.12)
    yield Finding("lamp at three sparsities / omp", best[lamp] / best[omp], 8)
    session = Session(model, batches[:1], "multiflow")
    session.masks((0.5,))
    statistic: InputNorms = session.pruner.norms  # type: ignore[union-attr]
    held = sum(t.numel() * t.element_size() for t in (statistic._sums, statistic._fresh))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    yield Finding("multiflow's statistics, as a share of the weights", held / weights, 0.02)


def main() -> None:
    """Measure and print."""
    args = parse_args()
    if args.memory:
        print(json.dumps(peak_memory(args.memory, args)))
        return
    report(chain(times(args), memory(args) if "memory" in args.kinds else ()), args.json)


if __name__ == "__main__":
    run_command(main)
