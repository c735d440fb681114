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

    from data.tokenizer import load_tokenizer  # heavy imports after parsing
    from models import load_task_model
    from tasks.nlvr import NLVR, NLVRConfig
    from training.finetuning import TrainingData, conclude, fit_task
    from training.run import chosen_sparsifier, open_run, sparsify

    config = parse(NLVRConfig, settings, where)
    if args.inherit_mask:
        config = dataclasses.replace(config, model={**config.model, "inherit_mask": True})
    with open_run(args, config, "nlvr") as run:
        sparsifier = chosen_sparsifier(run)
        model = load_task_model(args.model, "nlvr", weights=args.weights, overrides=config.model)
        sparsify(run, model, sparsifier)
        tokenizer = load_tokenizer(model.tokenizer)
        data = None if args.evaluate else TrainingData(run, model, tokenizer)
        task = NLVR(config, model, tokenizer, run.limit)
        epoch = fit_task(run, model, task, data, sparsifier) if data else None
        conclude(run, model, task, sparsifier, epoch, data)


if __name__ == "__main__":
    run_command(main)
