"""First stage of captioning: the language model of X-VLM warmed up on web captions and regions, under a mask.

Zeng, Zhang and Li, ICML 2022. captioning.py --load_capt_pretrain goes on from the weights that this leaves.
    python captioning_pretrain.py -m xvlm-mini --mask pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors
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

    return finetuning_parser(__doc__ or "", "captioning_pretrain").parse_args(arguments)


def main() -> None:
    """Train; the only number is the loss, of held-out captions where the configuration names some."""
    args = parse_args()
    settings, where = read_settings(args.config or task_file(args.model, "captioning_pretrain"), args.set)

    from tasks.captioning_pretrain import FirstStage, FirstStageConfig, refuse_first_stage  # heavy imports
    from training.finetuning import finetune

    config = parse(FirstStageConfig, settings, where)
    refuse_first_stage(args.weights)
    finetune(
        args,
        config,
        lambda model, tokenizer, folder, limit: FirstStage(config, model, tokenizer, limit),
        "captioning_pretrain",
        mask_inside=True,
    )


if __name__ == "__main__":
    run_command(main)
