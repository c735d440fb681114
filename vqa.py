"""Finetune and evaluate visual question answering, dense or under a mask of the pretraining model.

    python vqa.py --model xvlm-mini --mask pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors
Killed at any moment, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses

from configs.overrides import read_settings
from configs.schema import parse, task_file
from console.errors import run_command


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    from training.options import finetuning_parser

    parser = finetuning_parser(__doc__ or "", "vqa")
    parser.add_argument(
        "--inherit_mask", action="store_true", help="prune X-VLM's answer decoder, too (BLIP's always is)"
    )
    parser.add_argument(
        "--train_on_val", action="store_true", help="train on the validation split, too, as published: no local number"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Train on all but the validation split, answer that after every epoch, and the test split at the end."""
    args = parse_args()
    settings, where = read_settings(args.config or task_file(args.model, "vqa"), args.set)

    from tasks.vqa import VQA, VQAConfig, refuse_inheritance, with_validation  # heavy imports after parsing
    from training.finetuning import finetune

    config = parse(VQAConfig, settings, where)
    if args.inherit_mask:
        refuse_inheritance(args.model)
        config = dataclasses.replace(config, model={**config.model, "inherit_mask": True})
    if args.train_on_val:
        config = with_validation(config)
    finetune(args, config, lambda model, tokenizer, folder, limit: VQA(config, model, tokenizer, folder, limit), "vqa")


if __name__ == "__main__":
    run_command(main)
