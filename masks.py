"""Look into masks: inspect one, compare several, cut new sparsities, convert formats, measure stability.

python masks.py inspect pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors --html mask.html
python masks.py compare pruned_weights/*/xvlm-mini_*_75_seed42.safetensors --picture masks.png
python masks.py cut pruned_weights/multiflow/xvlm-mini_multiflow_seed42_scores.safetensors -s 50
python masks.py convert pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors
python masks.py stability --model xvlm-mini --pruner multiflow -s 75 --draws 3
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import prune
from configs.schema import model_names
from console.command_line import Parser
from console.errors import InputError, run_command
from console.progress import console
from pruners import PRUNERS
from sparsity.percents import parse_percents
from training.precisions import known_precision

PRUNING = (
    "config",
    "weights",
    "allocation",
    "num_batches",
    "batch_size",
    "num_workers",
    "accelerator",
    "precision",
    "output_dir",
    "seed",
)
"""Options of prune.py that `stability` hands on; all of them mean something with --draws only."""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    inspect = commands.add_parser("inspect", help="layers of a mask, dead neurons, signs of collapse")
    inspect.add_argument("file", metavar="FILE", help="a mask that prune.py wrote, or a published .pth")
    add_model(inspect)
    add_reports(inspect)

    compare = commands.add_parser("compare", help="which weights two masks or more have in common")
    compare.add_argument("files", nargs="+", metavar="FILE", help="masks of one model")
    add_model(compare)
    add_reports(compare, picture=True)

    cut = commands.add_parser("cut", help="masks at other sparsities from saved scores, as prune.py --from_scores")
    cut.add_argument("from_scores", metavar="SCORES", help="a *_scores.safetensors that prune.py wrote")
    cut.add_argument("-s", "--sparsities", nargs="+", required=True, help="percent of prunable weights to go")
    cut.add_argument("--allocation", help="how layers share the loss (default: as in the run that wrote the scores)")
    cut.add_argument("--output_dir", help="masks go to <output_dir>/<pruner>/ (default: beside the scores)")

    convert = commands.add_parser("convert", help="our .safetensors to a published .pth, or back")
    convert.add_argument("file", metavar="FILE", help="the mask to convert; its ending says which format it is in")
    convert.add_argument(
        "-o", "--output", metavar="FILE", help="the file to write (default: beside, by the other ending)"
    )
    convert.add_argument("--force", action="store_true", help="overwrite the file to write")
    convert.add_argument(
        "--without_values", action="store_true", help="drop updated weights, which a .pth has no place for"
    )
    add_model(convert)

    stability = commands.add_parser("stability", help="how far masks from several draws of the data agree")
    stability.add_argument("files", nargs="*", metavar="FILE", help="masks of one pruning that differ in the seed only")
    add_model(stability)
    add_reports(stability, picture=True)
    draws = stability.add_argument_group("make the draws first", "with --model and the options of prune.py")
    draws.add_argument("--draws", type=int, metavar="K", help="prune K times, with seeds that follow each other")
    draws.add_argument("-p", "--pruner", help="default: multiflow")
    draws.add_argument("-s", "--sparsities", nargs="+", metavar="PERCENT", help="percent of prunable weights to go")
    draws.add_argument("--seed", type=int, help="of the first draw (default: the configuration's)")
    draws.add_argument("--config", help="YAML file (default: configs/<model>/prune.yaml)")
    draws.add_argument("--output_dir", help="masks go to <output_dir>/<pruner>/ (default: pruned_weights)")
    for name in ("num_batches", "batch_size", "num_workers"):
        draws.add_argument(f"--{name}", type=int, help="as of prune.py")
    draws.add_argument("--precision", type=known_precision, help="as of prune.py")
    for name in ("weights", "allocation", "accelerator"):
        draws.add_argument(f"--{name}", help="as of prune.py")
    return parser.parse_args(arguments)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model that masks belong to."""
    parser.add_argument(
        "-m", "--model", help=f"fit published files to this model: {', '.join(model_names())}, timm:NAME or hf:ID"
    )


def add_reports(parser: argparse.ArgumentParser, picture: bool = False) -> None:
    """Where the findings go besides the terminal."""
    parser.add_argument(
        "--depth",
        choices=("modality", "block", "layer"),
        default="layer",
        help="how far the tree goes (default: layer)",
    )
    parser.add_argument("--html", metavar="FILE", help="write a page that stands alone")
    parser.add_argument("--json", metavar="FILE", help="write all numbers")
    if picture:
        parser.add_argument("--picture", metavar="FILE", help="draw the matrix of all pairs as a heat map (PNG)")


def main() -> None:
    """Check the command line, then do what it says."""
    args = parse_args()
    if args.command == "cut":
        parse_percents(args.sparsities)
        prune.cut(args)
        return
    draw = drawing(args) if args.command == "stability" else None

    from inspection.command import compare_command, convert_command, inspect_command, stability_command

    if args.command == "stability":
        stability_command(args, draw)
    else:
        {"inspect": inspect_command, "compare": compare_command, "convert": convert_command}[args.command](args)


def drawing(args: argparse.Namespace) -> Callable[[], list[Path]] | None:
    """What makes the masks of `stability`, or None where files are given; InputError where both or neither are."""
    if args.draws is None:
        idle = [name for name in ("pruner", "sparsities", *PRUNING) if getattr(args, name) is not None]
        if idle:
            raise InputError(f"--{idle[0]} has no meaning without --draws, which says how often to prune: add it")
        return None
    if args.files:
        raise InputError(f"--draws makes masks of its own: leave out {args.files[0]}, or --draws")
    if not args.model:
        raise InputError(f"--draws prunes a model: name it with --model, one of {', '.join(model_names())}")
    if args.draws < 2:
        raise InputError(f"--draws must be at least 2, not {args.draws}: one mask has nothing to agree with")
    if args.pruner:
        PRUNERS.check(args.pruner)
    percents = parse_percents(args.sparsities or [])
    if len(percents) > 1:
        raise InputError(f"stability looks at one sparsity at a time, not {len(percents)}: give one after -s")
    given = {name: getattr(args, name) for name in ("model", "pruner", *PRUNING)}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    words += ["--sparsities", f"{percents[0]:g}", "--devices", "1", "--num_nodes", "1", "--no-save_scores"]
    asked = prune.parse_args(words)

    def draw() -> list[Path]:
        """The mask files of prunings whose seeds follow each other."""
        from pruners.settings import settings_of

        first, paths = settings_of(asked).config.seed, []
        for number, seed in enumerate(range(first, first + args.draws), 1):
            console.print(f"draw {number} of {args.draws}, seed {seed}")
            paths.append(prune.prune(prune.parse_args([*words, "--seed", str(seed)])).mask(percents[0] / 100))
        return paths

    return draw


if __name__ == "__main__":
    run_command(main)
