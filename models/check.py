"""A conformance test: does a model answer pruners' questions correctly? Each failure is described in a sentence.

python -m models.check xvlm-mini
python -m models.check timm:vit_small_patch16_224 --weights random
"""

from __future__ import annotations

import argparse
import sys

from configs.overrides import add_set, changed
from configs.schema import model_names, read_yaml
from console.command_line import Parser
from console.errors import run_command


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"model: {', '.join(model_names())}, timm:<name> or hf:<id or folder>")
    parser.add_argument("--config", help="YAML file with the model's sizes (default: its own)")
    add_set(parser)
    parser.add_argument("--weights", default="random", help="checkpoint, or 'random' (default)")
    parser.add_argument("--conv", action="store_true", help="also check convolutions (timm:, hf:)")
    return parser.parse_args(arguments)


def main() -> None:
    """Run every check, print a line for each, exit with 1 if any failed."""
    args = parse_args()
    if args.config:
        read_yaml(args.config)  # read before torch is imported, so that a broken file is refused at once

    from models import load_model
    from models.conformance import check_model

    changes = changed({"conv": True} if args.conv else {}, args.set)
    model = load_model(args.name, args.config, args.weights, overrides=changes)
    sys.exit(0 if check_model(model, args.name) else 1)


if __name__ == "__main__":
    run_command(main)
