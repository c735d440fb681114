"""Finetune and evaluate image-text retrieval, dense or under a mask of the pretraining model.

    python retrieval.py --model xvlm-mini --mask pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors
Killed at any moment, the same command goes on where it was.
"""

from __future__ import annotations

import argparse

from configs.overrides import read_settings
from configs.schema import parse, task_file
from console.errors import run_command


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    from training.options import finetuning_parser

    parser = finetuning_parser(__doc__ or "", "retrieval")
    parser.add_argument(
        "--gather_negatives",
        action="store_true",
        help="contrast all pairs of the effective batch, not only those of one pass (or `gather_negatives: true`)",
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Train, keep the epoch with the best r_mean on the validation split, evaluate that one on the test split."""
    args = parse_args()
    settings, where = read_settings(args.config or task_file(args.model, "retrieval"), args.set)
    if args.gather_negatives:
        settings["gather_negatives"] = True

    from tasks.retrieval import Retrieval, RetrievalConfig  # heavy imports after parsing
    from training.finetuning import finetune

    config = parse(RetrievalConfig, settings, where)
    finetune(args, config, lambda model, tokenizer, _, limit: Retrieval(config, model, tokenizer, limit), "retrieval")


if __name__ == "__main__":
    run_command(main)
