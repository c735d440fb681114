"""Finetune and evaluate image-text retrieval, dense or under a mask of the pretraining model.

    python retrieval.py --model xvlm-mini --mask pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors
    python retrieval.py --model xvlm-mini --evaluate -pre runs/retrieval/RUN/best.safetensors
Killed at any moment, the same command resumes it.
"""

from __future__ import annotations

import argparse

from configs.schema import parse
from console.errors import run_command
from training.options import finetuning_parser, task_settings


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = finetuning_parser(__doc__ or "", "retrieval")
    parser.add_argument(
        "--gather_negatives",
        action="store_true",
        help="contrastive loss over the whole effective batch, not one forward pass (or `gather_negatives: true`)",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Train, keep the epoch with the best r_mean on the validation split, evaluate that one on the test split."""
    args = parse_args(arguments)
    settings, where = task_settings(args, "retrieval")
    if args.gather_negatives:
        settings["gather_negatives"] = True

    from tasks.retrieval import Retrieval, RetrievalConfig  # heavy imports after parsing
    from training.finetuning import run_task

    config = parse(RetrievalConfig, settings, where)
    run_task(args, config, "retrieval", lambda model, tokenizer, run: Retrieval(config, model, tokenizer, run.limit))


if __name__ == "__main__":
    run_command(main)
