"""Zero-shot evaluation, before any finetuning.

The parts are retrieval, boxes of regions, nearest neighbours, classes by their names, and pairs of captions.

python -m evaluation.zero_shot --model xvlm-mini --masks 'pruned_weights/*/xvlm-mini_*_seed42.safetensors'
"""

from __future__ import annotations

import argparse
import glob
from pathlib import Path

from configs.overrides import add_set, read_settings
from configs.schema import model_names, parse, task_file
from console.command_line import Parser
from console.errors import InputError, run_command


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help=f"one of {', '.join(model_names())}, timm:NAME or hf:ID")
    parser.add_argument("--weights", help="checkpoint (default: the model's own)")
    parser.add_argument("--config", help="YAML file (default: configs/<model>/zero_shot.yaml)")
    add_set(parser)
    parser.add_argument(
        "--masks", nargs="*", default=[], help="mask files or glob patterns, evaluated after the dense model"
    )
    parser.add_argument("--images", type=int, help="size of the retrieval gallery (default: the configuration's)")
    parser.add_argument(
        "--templates",
        nargs="+",
        metavar="TEXT",
        help="texts with {} for a class's name, or a file of such lines (default: the configuration's)",
    )
    parser.add_argument(
        "--dense", action=argparse.BooleanOptionalAction, default=True, help="also evaluate the dense model"
    )
    parser.add_argument(
        "--json",
        nargs="+",
        default=[],
        metavar="FILE",
        help="also write the numbers to this file, and the scores of single items next to it: items.json, or "
        "items_<mask>.json for several masks; or a file for each row of the table, in folders of their own",
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Evaluate the dense model and each mask; print a table."""
    args = parse_args()
    if not (args.dense or args.masks):
        raise InputError("--no-dense leaves nothing to evaluate: give mask files with --masks")
    settings, where = read_settings(args.config or task_file(args.model, "zero_shot"), args.set)

    from evaluation.zero_shot_table import ZeroShotConfig, evaluate_masks

    config = parse(ZeroShotConfig, settings, where)
    # Path.glob refuses absolute patterns.
    masks = [file for pattern in args.masks for file in (sorted(glob.glob(pattern)) or [pattern])]  # noqa: PTH207
    masks = list(dict.fromkeys(masks))
    for file in masks:
        if not Path(file).is_file():
            raise InputError(f"there is no mask '{file}': check the path or the pattern")
    evaluate_masks(args, config, masks)


if __name__ == "__main__":
    run_command(main)
