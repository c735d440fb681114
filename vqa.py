"""Finetune and evaluate visual question answering, dense or under a mask of the pretraining model.

    python vqa.py --model xvlm-mini --mask pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors
    python vqa.py --model xvlm-mini --evaluate -pre runs/vqa/RUN/last.safetensors
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
    parser = finetuning_parser(__doc__ or "", "vqa")
    parser.add_argument(
        "--inherit_mask", action="store_true", help="also prune X-VLM's answer decoder (BLIP's always is)"
    )
    parser.add_argument(
        "--train_on_val",
        action="store_true",
        help="also train on the validation split, as published; it is then not evaluated",
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Train without the validation split, evaluate it after every epoch, and the test split at the end."""
    args = parse_args()
    settings, where = task_settings(args, "vqa")

    from tasks.vqa import VQA, VQAConfig, refuse_inheritance, with_validation  # heavy imports after parsing
    from training.finetuning import run_task

    config = parse(VQAConfig, settings, where)
    if args.inherit_mask:
        refuse_inheritance(args.model)
        config = dataclasses.replace(config, model={**config.model, "inherit_mask": True})
    if args.train_on_val:
        config = with_validation(config)
    run_task(args, config, "vqa", lambda model, tokenizer, run: VQA(config, model, tokenizer, run.folder, run.limit))


if __name__ == "__main__":
    run_command(main)
