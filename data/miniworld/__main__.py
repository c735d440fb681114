"""Generate, verify, show and measure the mini world.

python -m data.miniworld generate                    # every part, into cache/miniworld/seed0-v1
python -m data.miniworld generate calibration itr --root /tmp/world
python -m data.miniworld verify                      # hash the files on disk against the record
python -m data.miniworld show --split itr_test --out sheet.png
python -m data.miniworld ceiling                     # best possible retrieval, blind guesses, words
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from console.command_line import Parser
from console.errors import InputError, nearest, run_command
from console.words import counted


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
    generate.add_argument("--workers", type=int, help="processes (default: the CPUs at hand)")
    verify = commands.add_parser("verify", parents=[common, stored], help="hash generated parts anew")
    verify.add_argument("parts", nargs="*", metavar="PART", help="which parts (default: those generated)")
    show = commands.add_parser("show", parents=[common], help="write a contact sheet of scenes")
    show.add_argument("--split", default="itr_test", help="which split's scenes (default itr_test)")
    show.add_argument("--count", type=int, default=20, help="how many scenes (default 20)")
    show.add_argument("--out", type=Path, default=Path("miniworld.png"), help="the PNG to write")
    commands.add_parser("ceiling", parents=[common], help="print what the world allows and gives away")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Parse, then import what the command needs."""
    args = parse_args(arguments)
    {"generate": _generate, "verify": _verify, "show": _show, "ceiling": _ceiling}[args.command](args)


def _generate(args: argparse.Namespace) -> None:
    from data.miniworld.parts import PARTS
    from data.miniworld.store import ensure, read_manifest

    _check_parts(args.parts)
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers} is no number of processes; give 1 or more")
    rows = []
    for part in args.parts or PARTS:
        root = ensure(part, args.root, args.seed, args.workers)
        manifest = read_manifest(root, part)
        rows.append({"part": part, "images": manifest["images"], "sha256": manifest["sha256"][:16]})
    _print_table(f"mini world of seed {args.seed} in {root}", rows)


def _verify(args: argparse.Namespace) -> None:
    from console.progress import progress_bar
    from data.miniworld.parts import PARTS
    from data.miniworld.store import default_root, other_world, read_manifest
    from data.miniworld.verify import MEND, hash_part

    _check_parts(args.parts)
    root = args.root or default_root(args.seed)
    manifests = {part: read_manifest(root, part) for part in args.parts or PARTS}
    missing = [part for part, manifest in manifests.items() if manifest is None]
    if args.parts and missing:
        raise InputError(f"{root} holds no {missing[0]} part; generate it first")
    rows, notes = [], []
    for part, manifest in manifests.items():
        if manifest is None:
            continue
        with progress_bar(f"hashing {part}", manifest["images"]) as advance:
            found = hash_part(root, manifest, advance)
        if found != manifest["sha256"]:
            raise InputError(f"files of the {part} part in {root} have changed since they were written; {MEND}")
        note = other_world(manifest)
        notes += [note] if note else []
        comparable = (manifest["seed"], manifest["scale"]) == (0, 1.0)
        verdict = "another world" if note else "as recorded" if comparable else "whole (no record to compare)"
        rows.append({"part": part, "images": manifest["images"], "sha256": found[:16], "verdict": verdict})
    if not rows:
        raise InputError(f"{root} holds no part of the mini world; generate one first")
    _print_table(f"mini world in {root}", rows)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)


def _show(args: argparse.Namespace) -> None:
    from data.miniworld.parts import SPLITS
    from data.miniworld.sheet import write_sheet

    if args.split not in SPLITS:
        raise InputError(
            f"the mini world has no split '{args.split}'{nearest(args.split, SPLITS)}; "
            f"its splits are {', '.join(SPLITS)}"
        )
    if not 1 <= args.count <= 1000:
        raise InputError(f"--count {args.count} does not fit a sheet; give 1 to 1000")
    write_sheet(args.out, args.split, args.count, args.seed)
    print(f"wrote {counted(args.count, 'scene')} of {args.split} to {args.out}")


def _ceiling(args: argparse.Namespace) -> None:
    from data.miniworld.measure import measure_captions, measure_questions, word_count

    captions = [measure_captions(split, 500, args.seed) for split in ("cc3m", "itr_test")]
    _print_table(f"captions (vocabulary: {word_count()} words)", captions)
    for split, scenes, count in (("vqa_train", 3000, 4), ("vqa_val", 500, 6), ("vqa_test", 500, 4)):
        _print_table(f"questions of {split}", measure_questions(split, scenes, count, args.seed))


def _check_parts(parts: list[str]) -> None:
    from data.miniworld.parts import PARTS

    for part in parts:
        if part not in PARTS:
            raise InputError(
                f"the mini world has no part '{part}'{nearest(part, PARTS)}; its parts are {', '.join(PARTS)}"
            )


def _print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """One rich table on stdout; numbers to the right, floats to one digit."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.1f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    run_command(main)
