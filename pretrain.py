"""Pretrain a model in stages (vision alone, text alone, together) and write its weights.

Made for the mini models on the mini world; the same stages run on the real data sets.
    python pretrain.py --model xvlm-mini --devices 2
Killed at any moment, the same command resumes it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.overrides import add_set, read_settings
from configs.precisions import PRECISIONS, known_precision
from configs.schema import model_names, parse, task_file
from console.command_line import Parser
from console.errors import run_command


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help=f"one of {', '.join(model_names())}")
    parser.add_argument("--config", help="YAML with the stages (default: configs/<model>/pretrain.yaml)")
    add_set(parser)
    parser.add_argument("--weights", help="start from this checkpoint (default: random weights)")
    parser.add_argument("--output_dir", help="folder of snapshots, logs and weights (default: runs/pretrain/<model>)")
    parser.add_argument(
        "--snapshot_seconds", type=float, default=120.0, help="seconds between snapshots (default: 120)"
    )
    parser.add_argument(
        "--seed", type=int, help="seed of weights, data order and dropout (default: the configuration's)"
    )
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, mps or auto (default: auto)")
    parser.add_argument("--devices", type=int, default=1, help="processes on this machine, one per device")
    parser.add_argument("--num_nodes", type=int, default=1, help="machines")
    parser.add_argument(
        "--precision", type=known_precision, default="32-true", help=f"{', '.join(PRECISIONS)} (default: 32-true)"
    )
    parser.add_argument("--num_workers", type=int, default=0, help="data loader processes per device")
    return parser.parse_args(arguments)


def main() -> None:
    """Run every stage that is not finished, then export the weights."""
    args = parse_args()
    settings, where = read_settings(args.config or task_file(args.model, "pretrain"), args.set)

    from pretraining.stages import PretrainConfig, pretrain  # heavy imports after parsing
    from storage.atomic import no_empty_folder

    config = parse(PretrainConfig, settings, where)
    folder = Path(args.output_dir or f"runs/pretrain/{args.model}")
    with no_empty_folder(folder):
        pretrain(args, config, folder)


if __name__ == "__main__":
    run_command(main)
