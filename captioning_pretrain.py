"""First stage of captioning: train X-VLM's language model on web captions and regions, under a mask.

Zeng, Zhang and Li, ICML 2022. captioning.py --load_capt_pretrain starts from the resulting weights.
    python captioning_pretrain.py -m xvlm-mini --mask pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors
Killed at any moment, the same command resumes it.
"""

from __future__ import annotations

import argparse

from configs.schema import parse
from console.errors import run_command
from training.options import finetuning_parser, task_settings


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    return finetuning_parser(__doc__ or "", "captioning_pretrain").parse_args(arguments)


def main() -> None:
    """Train; the only metric is the loss on held-out captions, if the configuration names some."""
    args = parse_args()
    settings, where = task_settings(args, "captioning_pretrain")

    from data.tokenizer import load_tokenizer  # heavy imports after parsing
    from models import load_task_model
    from tasks.captioning_pretrain import FirstStage, FirstStageConfig, refuse_first_stage
    from training.finetuning import TrainingData, conclude, fit_task
    from training.run import chosen_sparsifier, open_run, sparsify

    config = parse(FirstStageConfig, settings, where)
    if not args.evaluate:
        refuse_first_stage(args.weights)
    with open_run(args, config, "captioning_pretrain") as run:
        sparsifier = chosen_sparsifier(run)
        model = load_task_model(args.model, "captioning_pretrain", weights=args.weights, overrides=config.model)
        sparsify(run, model, sparsifier)
        tokenizer = load_tokenizer(model.tokenizer)
        data = None if args.evaluate else TrainingData(run, model, tokenizer)
        task = FirstStage(config, model, tokenizer, run.limit)
        epoch = fit_task(run, model, task, data, sparsifier, inside=True) if data else None
        conclude(run, model, task, sparsifier, epoch, data)


if __name__ == "__main__":
    run_command(main)
