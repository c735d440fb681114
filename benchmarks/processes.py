"""Pruning in two processes compared with one process with two threads: whole commands, alternating, best of each.

python -m benchmarks.processes            # full-size X-VLM, random weights, made-up batches
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.findings import Finding, add_json, report

SCRIPT = """
import sys, time, torch
import torch.distributed as dist
from benchmarks.pruning import SPARSITIES, make_batches, make_model
from pruners import prune
model_name, pruner, threads, batch_size, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(threads)
dist.init_process_group("gloo")
model = make_model(model_name)
batches = make_batches(model, batch_size, count)
prune(model, batches[:1], "omp", (0.5,))
dist.barrier()
started = time.perf_counter()
prune(model, batches, pruner, SPARSITIES)
dist.barrier()
if dist.get_rank() == 0:
    print("seconds", time.perf_counter() - started)
"""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="xvlm", help="model whose configuration is built with random weights")
    parser.add_argument("--pruners", nargs="+", default=["multiflow", "snip"])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4, help="general and as many region batches")
    parser.add_argument("--repeats", type=int, default=2)
    add_json(parser)
    return parser.parse_args()


def seconds(args: argparse.Namespace, pruner: str, processes: int, threads: int) -> float:
    """Seconds of one pruning, without loading the model."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["--no-python", sys.executable, "-c", SCRIPT, args.model, pruner, str(threads)]
    command += [str(args.batch_size), str(args.batches)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.split("seconds")[1])


def findings(args: argparse.Namespace) -> Iterator[Finding]:
    """Two processes over one, with the same number of threads in all."""
    for pruner in args.pruners:
        best = {1: float("inf"), 2: float("inf")}
        for _ in range(args.repeats):
            for processes in best:
                best[processes] = min(best[processes], seconds(args, pruner, processes, 2 // processes))
        yield Finding(f"{pruner}, two processes of a thread / one of two", best[2] / best[1], 1.2)


if __name__ == "__main__":
    options = parse_args()
    report(findings(options), options.json)
