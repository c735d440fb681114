"""Finetune and evaluate image classification, dense or under a mask of the pretraining model.

    python image_classification.py --model dino-mini --dense
    python image_classification.py --model dino-mini --evaluate -pre runs/image_classification/.../last.safetensors
Killed at any moment, the same command resumes where it was.
"""

from __future__ import annotations

import argparse

from console.errors import run_command
from training.options import finetuning_parser, task_settings


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = finetuning_parser(__doc__ or "", "image_classification")
    parser.add_argument("--dataset", help="one of the configuration's data sets (default: its first)")
    parser.add_argument(
        "--conv", action="store_true", help="convolutions can be pruned, too (timm:, hf:); as the mask was made"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Train, classify after every epoch, and in the end the test images; the last epoch counts unless asked."""
    args = parse_args()
    settings, where = task_settings(args, "image_classification")

    from data.tokenizer import load_tokenizer  # heavy imports after parsing
    from models import load_task_model
    from tasks.image_classification import Classification, config_for
    from training.finetuning import TrainingData, conclude, fit_task
    from training.run import chosen_sparsifier, open_run, sparsify

    config = config_for(settings, args.dataset, where, args.seed)
    if args.conv:
        config.model["conv"] = True
    dataset = args.dataset or next(iter(settings["datasets"]))
    with open_run(args, config, "image_classification", dataset=dataset) as run:
        sparsifier = chosen_sparsifier(run)
        model = load_task_model(args.model, "image_classification", weights=args.weights, overrides=config.model)
        sparsify(run, model, sparsifier)
        tokenizer = load_tokenizer(model.tokenizer)
        data = None if args.evaluate else TrainingData(run, model, tokenizer)
        task = Classification(config, model, tokenizer, run.folder, run.limit)
        epoch = fit_task(run, model, task, data, sparsifier) if data else None
        conclude(run, model, task, sparsifier, epoch, data)


if __name__ == "__main__":
    run_command(main)
