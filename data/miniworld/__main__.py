"""Generate, verify and show the mini world.

python -m data.miniworld generate                    # every part, into cache/miniworld/seed0-v1
python -m data.miniworld generate calibration itr --root /tmp/world
python -m data.miniworld verify                      # hash the files on disk against the record
python -m data.miniworld show --split itr_test --out sheet.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from console.command_line import Parser
from console.cores import usable_cores
from console.errors import InputError, run_command
from console.words import counted

COLUMNS, GAP, LINE, LINES, ZOOM = 5, 8, 12, 4, 4  # of a sheet; a line of text and the gaps in pixels


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; nothing heavy is imported before it has been read."""
    parser = Parser(
        prog="python -m data.miniworld",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--seed", type=int, default=0, help="seed of the world (default 0)")
    stored = argparse.ArgumentParser(add_help=False)
    stored.add_argument(
        "--root",
        type=Path,
        help="the world's folder (default: $MINIWORLD_DIR, else cache/miniworld/ in the repository)",
    )
    generate = commands.add_parser("generate", parents=[common, stored], help="write parts of the world")
    generate.add_argument("parts", nargs="*", metavar="PART", help="which parts (default: all)")
    generate.add_argument("--workers", type=int, help="processes (default: the available CPUs)")
    verify = commands.add_parser("verify", parents=[common, stored], help="hash generated parts again")
    verify.add_argument("parts", nargs="*", metavar="PART", help="which parts (default: those generated)")
    show = commands.add_parser("show", parents=[common], help="write a contact sheet of scenes with captions")
    show.add_argument("--split", default="itr_test", help="which split's scenes (default itr_test)")
    show.add_argument("--count", type=int, default=20, help="how many scenes (default 20)")
    show.add_argument("--out", type=Path, default=Path("miniworld.png"), help="the PNG to write")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Parse, then import what the command needs."""
    args = parse_args(arguments)
    {"generate": _generate, "verify": _verify, "show": _show}[args.command](args)


def _generate(args: argparse.Namespace) -> None:
    from data.miniworld.parts import PARTS, check_name
    from data.miniworld.store import ensure, read_manifest

    for part in args.parts:
        check_name("part", part, PARTS)
    workers = usable_cores() if args.workers is None else args.workers
    if workers < 1:
        raise InputError(f"--workers {workers} is no number of processes; give 1 or more")
    rows = []
    for part in args.parts or PARTS:
        root = ensure(part, args.root, args.seed, workers)
        manifest = read_manifest(root, part)
        rows.append({"part": part, "images": manifest["images"], "sha256": manifest["sha256"][:16]})
    _print_table(f"mini world of seed {args.seed} in {root}", rows)


def _verify(args: argparse.Namespace) -> None:
    from data.miniworld.parts import PARTS, check_name
    from data.miniworld.store import default_root, other_world, read_manifest
    from data.miniworld.verify import REPAIR, hash_part

    root = args.root or default_root(args.seed)
    rows, notes = [], []
    for part in args.parts or PARTS:
        check_name("part", part, PARTS)
        manifest = read_manifest(root, part)
        if manifest is None:
            if args.parts:
                raise InputError(f"{root} holds no {part} part; generate it first")
            continue
        found = hash_part(root, manifest)
        if found != manifest["sha256"]:
            raise InputError(f"files of the {part} part in {root} have changed since they were written; {REPAIR}")
        note = other_world(manifest)
        comparable = (manifest["seed"], manifest["scale"]) == (0, 1.0)
        verdict = "another world" if note else "as recorded" if comparable else "whole (no record to compare)"
        rows.append({"part": part, "images": manifest["images"], "sha256": found[:16], "verdict": verdict})
        notes += [note] if note else []
    if not rows:
        raise InputError(f"{root} holds no part of the mini world; generate one first")
    _print_table(f"mini world in {root}", rows)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)


def _show(args: argparse.Namespace) -> None:
    """Scenes of a split, enlarged, each with one of its captions below it."""
    import textwrap

    from PIL import Image, ImageDraw

    from data.miniworld.paint import paint
    from data.miniworld.parts import SPLITS, check_name, scene_for
    from data.miniworld.scene import SIDE
    from data.miniworld.write import captions_of
    from storage.atomic import atomic_path

    check_name("split", args.split, SPLITS)
    if not 1 <= args.count <= 1000:
        raise InputError(f"--count {args.count} does not fit a sheet; give 1 to 1000")
    side = SIDE * ZOOM
    width, height = side + GAP, side + GAP + LINE * LINES
    sheet = Image.new("RGB", (COLUMNS * width + GAP, -(-args.count // COLUMNS) * height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for index in range(args.count):
        scene = scene_for(args.split, index, args.seed)
        left, top = GAP + index % COLUMNS * width, GAP + index // COLUMNS * height
        sheet.paste(Image.fromarray(paint(scene)).resize((side, side), Image.Resampling.NEAREST), (left, top))
        lines = textwrap.wrap(captions_of(args.split, index, args.seed, scene, 1)[0], side // 6)[:LINES]
        pen.multiline_text((left, top + side + 2), "\n".join(lines), fill="black", spacing=1)
    with atomic_path(args.out) as temporary:
        sheet.save(temporary, "PNG")
    print(f"wrote {counted(args.count, 'scene')} of {args.split} to {args.out}")


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """One rich table on stdout; numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    run_command(main)
