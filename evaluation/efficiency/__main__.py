"""Parameters, FLOPs, file sizes, latency and throughput of a model, dense and under a mask.

python -m evaluation.efficiency --model xvlm-mini --mask pruned_weights/omp/xvlm-mini_omp_75_seed42.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.precisions import PRECISIONS, known_precision
from configs.schema import model_names
from console.command_line import Parser
from console.errors import InputError, run_command

TIMED = tuple(name for name in PRECISIONS if name.endswith("-true"))
"""Precisions of the timed models: one data type for weights and activations."""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-m", "--model", required=True, help=f"one of {', '.join(model_names())}, timm:<name> or hf:<id or folder>"
    )
    parser.add_argument("--weights", help="checkpoint, or random (default: the model's own)")
    parser.add_argument("--mask", help="mask file (default: the dense model alone)")
    parser.add_argument("--task", help="the task's model and pass (default: the pretraining model's)")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--repeats", type=int, default=20, help="timings per model, alternating, after a warm-up (default: 20)"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:<number> (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument(
        "--precision",
        type=lambda name: known_precision(name, TIMED),
        default=TIMED[0],
        help=f"precision of the timed models: {', '.join(TIMED)} (default: {TIMED[0]})",
    )
    parser.add_argument("--json", help="also write the numbers to this file")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print two tables, and summarise them in sentences."""
    args = parse_args()
    for name in ("batch_size", "repeats", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}")

    from evaluation.efficiency.table import measure, show  # heavy imports after the command line
    from storage.atomic import check_writable, no_empty_folder, write_json

    if not args.json:
        show(measure(args))
        return
    with no_empty_folder(Path(args.json).parent):
        check_writable(Path(args.json).parent)
        found = measure(args)
        show(found)
        write_json(args.json, found)


if __name__ == "__main__":
    run_command(main)
