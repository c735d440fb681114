"""Finetune and evaluate image classification, dense or under a mask of the pretraining model.

    python image_classification.py --model dino-mini --dense
Killed at any moment, the same command goes on where it was.
"""

from __future__ import annotations

import argparse

from configs.overrides import read_settings
from configs.schema import task_file
from console.errors import run_command


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    from training.options import finetuning_parser

    parser = finetuning_parser(__doc__ or "", "image_classification")
    parser.add_argument("--dataset", help="one of the configuration's data sets (default: its first)")
    return parser.parse_args(arguments)


def main() -> None:
    """Train, and classify the test images after every epoch; the last one counts."""
    args = parse_args()
    settings, where = read_settings(args.config or task_file(args.model, "image_classification"), args.set)

    from tasks.image_classification import Classification, config_for  # heavy imports after parsing
    from training.finetuning import finetune

    config = config_for(settings, args.dataset, where)
    finetune(
        args,
        config,
        lambda model, tokenizer, folder, limit: Classification(config, model, tokenizer, folder, limit),
        "image_classification",
        dataset=args.dataset or next(iter(settings["datasets"])),
    )


if __name__ == "__main__":
    run_command(main)
