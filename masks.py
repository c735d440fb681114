"""Inspect and compare masks, make other sparsities from scores, convert formats, check zeros, measure stability.

python masks.py inspect pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors --html mask.html
python masks.py compare pruned_weights/*/xvlm-mini_*_75_seed42.safetensors --picture masks.png
python masks.py cut pruned_weights/multiflow/xvlm-mini_multiflow_seed42_scores.safetensors -s 50
python masks.py convert pruned_weights/multiflow/xvlm-mini_multiflow_75_seed42.safetensors
python masks.py check pruned_weights/wanda/model_wanda_50_seed42 pruned_weights/wanda/model_wanda_50_seed42.safetensors
python masks.py stability --model xvlm-mini --pruner multiflow -s 75 --draws 3
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import prune
from configs.overrides import add_set
from configs.precisions import known_precision
from configs.schema import model_names
from console.command_line import Parser
from console.errors import InputError, run_command
from console.progress import console
from console.results import result_console
from console.words import counted, pct
from pruners import PRUNERS
from sparsity.percents import parse_percents
from storage.atomic import check_writable, write_json, write_text

OURS, PUBLISHED = ".safetensors", ".pth"

PRUNING = (
    *("config", "weights", "allocation", "num_batches", "batch_size", "num_workers"),
    *("accelerator", "precision", "output_dir", "seed"),
)
"""Options of prune.py that `stability` passes on; all of them need --draws."""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    inspect = commands.add_parser("inspect", help="show the layers of a mask, dead neurons and collapsed layers")
    inspect.add_argument("file", metavar="FILE", help="mask written by prune.py, or a published .pth")
    add_model(inspect)
    add_reports(inspect)

    compare = commands.add_parser("compare", help="compare which weights two or more masks keep")
    compare.add_argument("files", nargs="+", metavar="FILE", help="masks of one model")
    add_model(compare)
    add_reports(compare, picture=True)

    cut = commands.add_parser("cut", help="make masks of other sparsities from saved scores, as prune.py --from_scores")
    cut.add_argument("from_scores", metavar="SCORES", help="scores file (*_scores.safetensors) written by prune.py")
    cut.add_argument(
        "-s", "--sparsities", nargs="+", required=True, help="sparsities in percent of the prunable weights"
    )
    cut.add_argument(
        "--allocation", help="how the sparsity is shared among layers (default: as in the run that wrote the scores)"
    )
    cut.add_argument("--output_dir", help="masks are written to <output_dir>/<pruner>/ (default: next to the scores)")

    convert = commands.add_parser("convert", help="convert between our .safetensors and the published .pth format")
    convert.add_argument("file", metavar="FILE", help="mask to convert; its extension says which format it is in")
    convert.add_argument(
        "-o", "--output", metavar="FILE", help="file to write (default: the same path with the other extension)"
    )
    convert.add_argument("--force", action="store_true", help="overwrite an existing file")
    convert.add_argument("--without_values", action="store_true", help="drop updated weights, which a .pth cannot hold")
    add_model(convert)

    check = commands.add_parser("check", help="check that a Hugging Face folder still has a mask's zeros")
    check.add_argument("folder", metavar="FOLDER", help="folder written by prune.py --stream, or derived from one")
    check.add_argument("file", metavar="MASK", help="exit code 1: a pruned weight is nonzero, or cannot be checked")

    stability = commands.add_parser("stability", help="measure how much masks from several draws of the data agree")
    stability.add_argument("files", nargs="*", metavar="FILE", help="masks of one pruning that differ in the seed only")
    add_model(stability)
    add_reports(stability, picture=True)
    draws = stability.add_argument_group("make the draws first", "with --model and the options of prune.py")
    draws.add_argument("--draws", type=int, metavar="K", help="prune K times, with consecutive seeds")
    draws.add_argument("-p", "--pruner", help="default: multiflow")
    draws.add_argument(
        "-s", "--sparsities", nargs="+", metavar="PERCENT", help="sparsity in percent of the prunable weights"
    )
    draws.add_argument("--seed", type=int, help="seed of the first draw (default: the configuration's)")
    draws.add_argument("--config", help="YAML file (default: configs/<model>/prune.yaml)")
    draws.add_argument("--output_dir", help="masks are written to <output_dir>/<pruner>/ (default: pruned_weights)")
    for name in ("num_batches", "batch_size", "num_workers"):
        draws.add_argument(f"--{name}", type=int, help="as in prune.py")
    draws.add_argument("--precision", type=known_precision, help="as in prune.py")
    for name in ("weights", "allocation", "accelerator"):
        draws.add_argument(f"--{name}", help="as in prune.py")
    draws.add_argument("--conv", action="store_true", default=None, help="as in prune.py")
    add_set(draws)
    return parser.parse_args(arguments)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model that masks belong to."""
    parser.add_argument(
        "-m", "--model", help=f"fit published files to this model: {', '.join(model_names())}, timm:NAME or hf:ID"
    )


def add_reports(parser: argparse.ArgumentParser, picture: bool = False) -> None:
    """Options that write the results to files."""
    depths = ("modality", "block", "layer")
    parser.add_argument("--depth", choices=depths, default="layer", help="depth of the printed tree (default: layer)")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained HTML page")
    parser.add_argument("--json", metavar="FILE", help="write all numbers to this file")
    if picture:
        parser.add_argument("--picture", metavar="FILE", help="draw the matrix of all pairs as a heat map (PNG)")


def main() -> None:
    """Check the command line and run the subcommand."""
    args = parse_args()
    commands = (inspect, compare, cut, convert, check, stability)
    {command.__name__: command for command in commands}[args.command](args)


def inspect(args: argparse.Namespace) -> None:
    """Print the layers, dead neurons and warnings of one mask."""
    from inspection.layers import count_layers, warnings
    from inspection.page import inspection_page
    from inspection.reading import read_masks
    from inspection.records import inspection_record
    from inspection.terminal import DEPTHS, show_inspection

    check_outputs(args, [args.file])
    file = read_masks([args.file], args.model)[0]
    if file.mask.source.get("format") == "published" and args.model is None:
        console.print("note: a published mask also lists layers that are never pruned; --model MODEL leaves them out")
    counts = count_layers(file.mask)
    found = file, counts, warnings(file.mask, counts)
    show_inspection(result_console(), *found, DEPTHS[args.depth])
    write(args, lambda: inspection_page(*found), lambda: inspection_record(*found))


def compare(args: argparse.Namespace) -> None:
    """Compare two or more masks."""
    if len(args.files) < 2:
        raise InputError("compare needs at least two masks: give more files, or use `masks.py inspect` for one")
    check_outputs(args, args.files)

    from inspection.comparison import compare as compared
    from inspection.comparison import draw_heat_map
    from inspection.page import comparison_page
    from inspection.reading import read_masks
    from inspection.records import comparison_record
    from inspection.terminal import DEPTHS, show_comparison

    found = compared(read_masks(args.files, args.model))
    show_comparison(result_console(), found, DEPTHS[args.depth])
    draw = partial(draw_heat_map, found)
    write(args, lambda: comparison_page(found), lambda: comparison_record(found), draw)


def stability(args: argparse.Namespace) -> None:
    """Compare draws of one pruning; with --draws they are made first."""
    make = drawing(args)
    check_outputs(args, args.files)

    from inspection.comparison import draw_heat_map
    from inspection.page import stability_page
    from inspection.reading import read_masks
    from inspection.records import stability_record
    from inspection.stability import stability as agreement
    from inspection.terminal import DEPTHS, show_stability

    found = agreement(read_masks(make(), None) if make else read_masks(args.files, args.model))
    show_stability(result_console(), found, DEPTHS[args.depth])
    draw = partial(draw_heat_map, found.comparison)
    write(args, lambda: stability_page(found), lambda: stability_record(found), draw)


def check(args: argparse.Namespace) -> None:
    """Check a folder of weights against a mask."""
    from inspection.folder import check_zeros, show_zeros
    from inspection.reading import read_masks

    mask, folder = read_masks([args.file])[0].mask, Path(args.folder)
    if not show_zeros(result_console(), folder, mask, check_zeros(folder, mask)):
        raise SystemExit(1)


def drawing(args: argparse.Namespace) -> Callable[[], list[str]] | None:
    """A function that makes the masks of `stability`; None if files are given. InputError for both or neither."""
    if args.draws is None:
        idle = [n for n in ("pruner", "sparsities", "conv", "set", *PRUNING) if getattr(args, n) not in (None, [])]
        if idle:
            raise InputError(f"--{idle[0]} has no effect without --draws, the number of prunings: add it")
        return None
    if args.files:
        raise InputError(f"--draws makes its own masks: leave out {args.files[0]}, or --draws")
    if not args.model:
        raise InputError(f"--draws prunes a model: name it with --model, one of {', '.join(model_names())}")
    if args.draws < 2:
        raise InputError(f"--draws must be at least 2, not {args.draws}: stability compares masks")
    if args.pruner:
        PRUNERS.check(args.pruner)
    percents = parse_percents(args.sparsities or [])
    if len(percents) > 1:
        raise InputError(f"stability measures one sparsity at a time, not {len(percents)}: give one after -s")
    given = {name: getattr(args, name) for name in ("model", "pruner", *PRUNING)}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    words += [word for assignment in args.set for word in ("--set", assignment)] + ["--conv"] * bool(args.conv)
    words += ["--sparsities", str(percents[0]), "--devices", "1", "--num_nodes", "1", "--no-save_scores"]
    asked = prune.parse_args(words)

    def draw() -> list[str]:
        """Prune once per seed; returns the mask files."""
        from pruners.settings import settings_of

        first, paths = settings_of(asked).config.seed, []
        for number, seed in enumerate(range(first, first + args.draws), 1):
            console.print(f"draw {number} of {args.draws}, seed {seed}")
            outputs = prune.prune(prune.parse_args([*words, "--seed", str(seed)]))
            paths.append(str(outputs.mask(percents[0] / 100)))
        return paths

    return draw


def cut(args: argparse.Namespace) -> None:
    """Masks at other sparsities, from scores."""
    parse_percents(args.sparsities)
    prune.cut(args)


def convert(args: argparse.Namespace) -> None:
    """Convert a mask to the other format, bit for bit.

    The published format lists all linear layers of a model, so writing it needs the model, by the mask's source or
    --model. Reading it with --model leaves out layers that are never pruned, and adds the modalities.
    """
    from inspection.reading import fit
    from models import RANDOM, load_model
    from sparsity.mask import Mask

    file, model = Path(args.file), args.model
    target = converted(file, args.output, args.force)
    mask = Mask.load(file)
    if target.suffix == PUBLISHED:
        model = model or mask.source.get("model")
        if not model:
            raise InputError(f"{file} does not name its model: give it with --model")
        if mask.has_values and not args.without_values:
            raise InputError(
                f"{file} has updated weights, which the published format cannot store: keep this format, or drop them "
                "with --without_values"
            )
        check_writable(target.parent)
        changes = {"conv": True} if mask.source.get("conv") else {}
        mask.save(target, format="pth", model=load_model(model, weights=RANDOM, overrides=changes))
    else:
        check_writable(target.parent)
        if model is None:
            words = "without --model, layers that are never pruned stay in the mask, and modalities are unknown"
            console.print(f"note: {words}")
        else:
            mask = fit([mask], model)[0]
            mask.source |= {"model": model}
            mask.source.pop("format", None)
        mask.source |= {"sparsity_reached": mask.sparsity()}
        mask.save(target)
    result_console().print(f"{target}: {counted(len(mask), 'layer')}, {pct(mask.sparsity(), 3)} pruned", markup=False)


def converted(file: Path, output: str | None, force: bool) -> Path:
    """The path of a converted mask: by default the same name with the other format's extension.

    InputError if it has the same format, or exists and --force is not given.
    """
    wanted = PUBLISHED if file.suffix == OURS else OURS
    target = Path(output) if output else file.with_suffix(wanted)
    if target.suffix != wanted:
        raise InputError(f"{file} is converted to a {wanted} file, not to {target}: give a name with this extension")
    if target.is_dir():
        raise InputError(f"{target} is a folder: name the file to write, or leave --output out")
    if target.exists() and not force:
        raise InputError(f"{target} exists: give --force to overwrite it, or another name with --output")
    return target


# -- outputs --------------------------------------------------------------------------------------------


def check_outputs(args: argparse.Namespace, inputs: list[str]) -> None:
    """InputError, before any work, when an output cannot be written or would overwrite a mask."""
    masks = {Path(path).resolve() for path in inputs}
    seen: set[Path] = set()
    for kind, path in wanted(args).items():
        if path.resolve() in masks:
            raise InputError(f"{path} is one of the masks: choose another name for the output")
        if path.resolve() in seen:
            raise InputError(f"{path} is named for two outputs: choose another name for one")
        seen.add(path.resolve())
        if path.is_dir():
            raise InputError(f"{path} is a folder: name the file to write")
        if kind == "picture" and path.suffix.lower() not in ("", ".png"):
            raise InputError(f"--picture writes PNG, so {path} must end in .png: choose such a name")
        above = next(folder for folder in path.parents if folder.exists())  # `write` makes missing folders
        if above.is_file():
            raise InputError(f"{above} is a file, not a folder: name a file in another place")
        check_writable(above)


def wanted(args: argparse.Namespace) -> dict[str, Path]:
    """The output files that were requested."""
    given = {kind: getattr(args, kind, None) for kind in ("html", "json", "picture")}
    return {kind: Path(path) for kind, path in given.items() if path}


def write(
    args: argparse.Namespace,
    page: Callable[[], str],
    record: Callable[[], dict[str, Any]],
    picture: Callable[[Path], None] | None = None,
) -> None:
    """Write the requested files, and print a line for each."""
    for kind, path in wanted(args).items():
        if kind == "html":
            write_text(path, page())
        elif kind == "json":
            write_json(path, record())
        elif picture is not None:
            picture(path)
        result_console().print(f"{kind}: {path}", markup=False)


if __name__ == "__main__":
    run_command(main)
