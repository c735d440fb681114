"""Finetune and evaluate image captioning, dense or under a mask of the pretraining model.

    python captioning.py --model xvlm-mini --mask pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors
    python captioning.py --model xvlm-mini --evaluate -pre runs/captioning/RUN/best.safetensors
After a first stage (captioning_pretrain.py), whose weights contain their mask:
    python captioning.py --model xvlm-mini --load_capt_pretrain -pre runs/captioning_pretrain/RUN/last.safetensors
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
    parser = finetuning_parser(__doc__ or "", "captioning")
    parser.add_argument("--skip_eval", action="store_true", help="write captions without scoring them")
    parser.add_argument(
        "--load_capt_pretrain",
        action="store_true",
        help="start from the first stage given by -pre, under the mask that it contains",
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Train, caption the validation split after every epoch, test the epoch with the best CIDEr."""
    args = parse_args()
    settings, where = task_settings(args, "captioning")

    from tasks.captioning import Captioning, CaptioningConfig  # heavy imports after parsing
    from tasks.captioning_pretrain import refuse_first_stage, use_first_stage
    from training.finetuning import run_task

    config = parse(CaptioningConfig, settings, where)
    if args.load_capt_pretrain:
        config = dataclasses.replace(config, model={**config.model, **use_first_stage(args)})
    elif not args.evaluate:
        refuse_first_stage(args.weights)
    run_task(
        args, config, "captioning",
        lambda model, tokenizer, run: Captioning(config, model, tokenizer, run.folder, args.skip_eval, run.limit),
        variant="after_first_stage" if args.load_capt_pretrain else "",
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main)
