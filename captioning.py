"""Finetune and evaluate image captioning, dense or under a mask of the pretraining model.

    python captioning.py --model xvlm-mini --mask pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors
After a first stage (captioning_pretrain.py), whose weights contain their mask:
    python captioning.py --model xvlm-mini --load_capt_pretrain -pre runs/captioning_pretrain/RUN/last.safetensors
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

    parser = finetuning_parser(__doc__ or "", "captioning")
    parser.add_argument("--skip_eval", action="store_true", help="write captions, but do not score them")
    parser.add_argument(
        "--load_capt_pretrain",
        action="store_true",
        help="-pre is what captioning_pretrain.py wrote: start from it, under the mask that it contains",
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Train, caption the validation split after every epoch, test the epoch with the best CIDEr."""
    args = parse_args()
    settings, where = read_settings(args.config or task_file(args.model, "captioning"), args.set)

    from tasks.captioning import Captioning, CaptioningConfig  # heavy imports after parsing
    from tasks.captioning_pretrain import refuse_first_stage, take_first_stage
    from training.finetuning import finetune

    config = parse(CaptioningConfig, settings, where)
    if args.load_capt_pretrain:
        config = dataclasses.replace(config, model={**config.model, **take_first_stage(args)})
    else:
        refuse_first_stage(args.weights)
    finetune(
        args,
        config,
        lambda model, tokenizer, folder, limit: Captioning(config, model, tokenizer, folder, args.skip_eval, limit),
        "captioning",
        "after_first_stage" if args.load_capt_pretrain else "",
    )


if __name__ == "__main__":
    run_command(main)
