"""Finetune and evaluate NLVR2, statements about two images, dense or under a mask of the pretraining model.

    python nlvr.py --model blip-mini --mask pruned_weights/multiflow/blip-mini_multiflow_75_seed42.safetensors
    python nlvr.py --model blip-mini --evaluate -pre runs/nlvr/RUN/best.safetensors
Killed at any moment, the same command resumes it.
"""

from __future__ import annotations

import argparse
import dataclasses

from configs.schema import parse
from console.errors import run_command
from training.options import finetuning_parser, task_settings


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = finetuning_parser(__doc__ or "", "nlvr")
    parser.add_argument(
        "--inherit_mask", action="store_true", help="with --mask, also prune the layers that merge two images"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Train, evaluate dev after every epoch, and test with the best epoch."""
    args = parse_args()
    settings, where = task_settings(args, "nlvr")

    from tasks.nlvr import NLVR, NLVRConfig  # heavy imports after parsing
    from training.finetuning import run_task

    config = parse(NLVRConfig, settings, where)
    if args.inherit_mask:
        config = dataclasses.replace(config, model={**config.model, "inherit_mask": True})
    run_task(args, config, "nlvr", lambda model, tokenizer, run: NLVR(config, model, tokenizer, run.limit))


if __name__ == "__main__":
    run_command(main)
