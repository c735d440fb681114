"""What masks.py does once its command line is read: look, show, write."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from console.errors import InputError
from console.progress import console
from console.results import result_console
from console.words import counted
from inspection.comparison import compare
from inspection.convert import convert
from inspection.heatmap import draw_heat_map
from inspection.layers import count_layers, warnings
from inspection.pages import comparison_page, inspection_page, stability_page
from inspection.reading import read_masks
from inspection.records import comparison_record, inspection_record, stability_record
from inspection.stability import stability
from inspection.terminal import pct, show_comparison, show_inspection, show_stability
from inspection.tree import DEPTHS
from storage.atomic import check_writable, write_json, write_text


def inspect_command(args: Namespace) -> None:
    """One mask: its layers, dead neurons, warnings."""
    check_outputs(args, [args.file])
    file = read_masks([args.file], args.model)[0]
    if file.mask.source.get("format") == "published" and args.model is None:
        console.print("note: a published mask lists layers that are never pruned, too; --model MODEL leaves them out")
    counts = count_layers(file.mask)
    warned = warnings(file.mask, counts)
    show_inspection(result_console(), file, counts, warned, DEPTHS[args.depth])
    write(args, lambda: inspection_page(file, counts, warned), lambda: inspection_record(file, counts, warned))


def compare_command(args: Namespace) -> None:
    """Two masks or more against each other."""
    if len(args.files) < 2:
        raise InputError("compare needs at least two masks: give more files, or look at one with `masks.py inspect`")
    check_outputs(args, args.files)
    comparison = compare(read_masks(args.files, args.model))
    show_comparison(result_console(), comparison, DEPTHS[args.depth])
    write(
        args,
        lambda: comparison_page(comparison),
        lambda: comparison_record(comparison),
        lambda path: draw_heat_map(comparison, path),
    )


def stability_command(args: Namespace, draw: Callable[[], list[Path]] | None) -> None:
    """Draws of one pruning against each other; `draw` makes them first, where they are not there."""
    check_outputs(args, args.files)
    files = read_masks([str(path) for path in (draw() if draw else args.files)], None if draw else args.model)
    found = stability(files)
    show_stability(result_console(), found, DEPTHS[args.depth])
    write(
        args,
        lambda: stability_page(found),
        lambda: stability_record(found),
        lambda path: draw_heat_map(found.comparison, path),
    )


def convert_command(args: Namespace) -> None:
    """A mask in the other format."""
    target, mask = convert(Path(args.file), args.output, args.model, args.force, args.without_values)
    result_console().print(f"{target}: {counted(len(mask), 'layer')}, {pct(mask.sparsity(), 3)} pruned", markup=False)


def check_outputs(args: Namespace, inputs: list[str]) -> None:
    """InputError now, where a page or record cannot be written or would take the place of a mask."""
    masks = {Path(path).resolve() for path in inputs}
    seen: set[Path] = set()
    for kind, path in wanted(args).items():
        if path.resolve() in masks:
            raise InputError(f"{path} is one of the masks: choose another name for what is written")
        if path.resolve() in seen:
            raise InputError(f"{path} cannot hold two things that are written: choose another name for one")
        seen.add(path.resolve())
        if path.is_dir():
            raise InputError(f"{path} is a folder: name the file to write")
        if kind == "picture" and path.suffix.lower() not in ("", ".png"):
            raise InputError(f"--picture writes PNG, and {path} is called otherwise: let its name end in .png")
        above = next(folder for folder in path.parents if folder.exists())  # what is missing below is made by `write`
        if above.is_file():
            raise InputError(f"{above} is a file, not a folder: name a file in another place")
        check_writable(above)


def wanted(args: Namespace) -> dict[str, Path]:
    """The files asked for."""
    given = {kind: getattr(args, kind, None) for kind in ("html", "json", "picture")}
    return {kind: Path(path) for kind, path in given.items() if path}


def write(
    args: Namespace,
    page: Callable[[], str],
    record: Callable[[], dict[str, Any]],
    picture: Callable[[Path], None] | None = None,
) -> None:
    """The files asked for, and a line on each."""
    for kind, path in wanted(args).items():
        if kind == "html":
            write_text(path, page())
        elif kind == "json":
            write_json(path, record())
        elif picture is not None:
            picture(path)
        result_console().print(f"{kind}: {path}", markup=False)
