"""Next-token loss of a pruned generative model on held-out texts, and agreement with the dense model's predictions.

python -m evaluation.next_tokens --model hf:FOLDER --pruned FOLDER_OR_MASK ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.overrides import add_set, read_settings
from configs.schema import parse, task_file
from console.command_line import Parser
from console.errors import InputError, run_command


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", required=True, help="the dense model: hf:FOLDER or hf:ID, a generative one")
    parser.add_argument(
        "--pruned", nargs="*", default=[], metavar="PATH", help="folders of pruned models, or masks of this one"
    )
    parser.add_argument("--config", help="YAML file (default: configs/hf/next_tokens.yaml)")
    add_set(parser)
    parser.add_argument("--stream", action="store_true", help="read folders block by block: models larger than memory")
    parser.add_argument("--device", help="cpu, cuda or cuda:<number> (default: cuda where there is one)")
    parser.add_argument(
        "--json",
        help="also write the numbers to this file, and the agreement of single tokens next to it: items.json, or "
        "items_<name>.json for several models",
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Compare each pruned model with the dense one; print a table."""
    args = parse_args()
    settings, where = read_settings(args.config or task_file(args.model, "next_tokens"), args.set)
    for path in args.pruned:
        if not Path(path).exists():
            raise InputError(f"there is no pruned model or mask '{path}': check the path")
        if args.stream and not Path(path).is_dir():
            raise InputError(f"{path} is not a folder: with --stream give the folder that prune.py wrote with the mask")
    if args.stream and args.device not in (None, "cpu"):
        raise InputError(f"--stream computes on the CPU, not on {args.device}: leave out --device, or --stream")

    from evaluation.next_tokens_table import NextTokensConfig, compare

    compare(args, parse(NextTokensConfig, settings, where))


if __name__ == "__main__":
    run_command(main)
