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

    from tasks.captioning_pretrain import (  # heavy imports after parsing
        FirstStage,
        FirstStageConfig,
        refuse_first_stage,
    )
    from training.finetuning import run_task

    config = parse(FirstStageConfig, settings, where)
    if not args.evaluate:
        refuse_first_stage(args.weights)
    run_task(
        args, config, "captioning_pretrain",
        lambda model, tokenizer, run: FirstStage(config, model, tokenizer, run.limit), inside=True,
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
