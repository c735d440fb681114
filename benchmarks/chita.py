"""CHITA on a full-size model with random weights: time compared with a loop over single blocks, memory, disk.

    python -m benchmarks.chita                # X-VLM, 50 rows of 2 samples a side
Both use the same 50 gradients; the loop then solves one block of weights after the other, in float64, with NumPy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.findings import Finding, add_json, report
from benchmarks.pruning import bare_backward, make_model
from benchmarks.timing import memory_in_use, timed

if TYPE_CHECKING:
    from models.base import Model

SPARSITY = 0.75


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="xvlm", help="model whose configuration is built with random weights")
    parser.add_argument("--rows", type=int, default=50, help="gradients, one a pair of batches")
    parser.add_argument("--batch_size", type=int, default=2, help="samples a batch; losses need two")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        help="measure only every n-th backward pass and block of the baseline, and scale the times up",
    )
    parser.add_argument("--scratch_dir", help="folder of the gradients")
    add_json(parser)
    return parser.parse_args()


@dataclass(frozen=True)
class MadeUp:
    """Batches with the real shapes, made on access, since a list would take additional memory."""

    model: Model
    size: int
    count: int
    every: int = 1

    def __iter__(self) -> Iterator[dict]:
        import torch

        for number in range(0, self.count, self.every):
            torch.manual_seed(number)
            yield self.model.example(self.size)


def single_blocks(rows, layers, block: int, every: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A [n, m] and w [m] of every `every`-th block."""
    number = 0
    for name, layer in layers.items():
        weights = layer.weight.detach().numpy().reshape(-1)
        for columns, a in rows.blocks(name, block):
            for start in range(0, a.shape[1], block):
                if number % every == 0:
                    part = slice(columns.start + start, min(columns.start + start + block, columns.stop))
                    yield a[:, start : start + block].numpy(), weights[part]
                number += 1


def solve_block(a: np.ndarray, w: np.ndarray, mu: float, inverse_batch: float, iterations: int) -> np.ndarray:
    """CHITA within one block, as in the paper's pseudocode: hard thresholding, then least squares on the support."""
    a, w = a.astype(np.float64), w.astype(np.float64)
    keep = len(w) - round(SPARSITY * len(w))

    def largest(u: np.ndarray) -> np.ndarray:
        b = np.zeros_like(u)
        kept = np.argpartition(np.abs(u), len(u) - keep)[len(u) - keep :]
        b[kept] = u[kept]
        return b

    def objective(b: np.ndarray) -> float:
        v = a @ (b - w)
        return v @ v / 2 + inverse_batch * v.sum() + mu / 2 * ((b - w) @ (b - w))

    curvature = np.linalg.eigvalsh(a @ a.T)[-1] + mu
    b = largest(w)
    lowest = objective(b)
    for _ in range(iterations):
        gradient = a.T @ (a @ (b - w) + inverse_batch) + mu * (b - w)
        trials = [largest(b - step / curvature * gradient) for step in (4.0, 1.0)]
        values = [objective(trial) for trial in trials]
        if min(values) >= lowest:
            break
        b, lowest = trials[int(np.argmin(values))], min(values)
    alive = b != 0
    seen = a[:, alive]
    system = seen @ seen.T + mu * np.eye(len(a))
    z = np.linalg.solve(system, a[:, ~alive] @ -w[~alive] + inverse_batch)
    b[alive] = w[alive] - seen.T @ z
    return b


def findings(args: argparse.Namespace) -> Iterator[Finding]:
    """Time over the baseline's, and peak memory; seconds are printed."""
    from calibration.preserve import preserved
    from models.common.memory import freed_memory_returned
    from pruners.chita import CHITA
    from pruners.session import Session

    model = make_model(args.model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    start = memory_in_use("VmHWM")
    batches = MadeUp(model, args.batch_size, args.rows)
    session = Session(model, batches, "chita", num_batches=args.rows, scratch_dir=args.scratch_dir)
    with preserved(model, gradients=True), freed_memory_returned():
        chita = CHITA(model, session._work, session.options, session.allocation)
        started = time.perf_counter()
        rows = chita._gather_rows(0)
        gathered = time.perf_counter() - started
        backward_peak = memory_in_use("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak resident set
        try:
            solved = timed(lambda: chita._prune(rows, SPARSITY, 0))
            peak = memory_in_use("VmHWM")
            mu, inverse_batch = rows.rows * session.options.lambda_, rows.rows / rows.samples
            started = time.perf_counter()
            for a, w in single_blocks(rows, chita.layers, session.options.block, args.every):
                solve_block(a, w, mu, inverse_batch, session.options.iterations)
            loop = args.every * (time.perf_counter() - started)
        finally:
            rows.close()
    backward = args.every * timed(lambda: bare_backward(model, replace(batches, every=args.every)))
    print(f"{args.rows} rows of {args.batch_size} samples a side, {args.model}, one sparsity")
    if args.every > 1:
        print(f"gradients alone and the loop: every {args.every}. one measured, times scaled up")
    print(f"gradients alone               {backward:8.1f} s")
    print(f"gradients, summed and on disk {gathered:8.1f} s")
    print(f"CHITA: global part and blocks {solved:8.1f} s")
    print(f"a loop over single blocks     {loop:8.1f} s (no global part)")
    yield Finding("CHITA / (gradients + a loop over blocks)", (gathered + solved) / (backward + loop), 1 / 3)
    print(f"held before: {start / 1e9:.2f} GB, weights {weights / 1e9:.2f} GB")
    for phase, held in (("gradients", backward_peak), ("solution", peak)):
        yield Finding(f"CHITA, peak memory of the {phase} beyond the weights, GB", (held - weights) / 1e9, 1.5)


if __name__ == "__main__":
    options = parse_args()
    report(findings(options), options.json)
