"""Measure the table of docs/cost.md by one command.

    python -m benchmarks.cost                      # everything but CHITA and streaming, which take longest
    python -m benchmarks.cost measuring steps      # some parts; the rows of others stay
Each benchmark runs in a process of its own. docs/cost.json has all results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from benchmarks.findings import Finding
from console.errors import InputError, nearest, run_command

PARTS = {
    "pruning": ["pruning"],
    "processes": ["processes"],
    "steps": [
        "sparse_step --repeats 4",
        "sparse_step --model blip --task captioning --prune platon --threads 1 --repeats 2",
        "sparse_step --model timm:resnet18 --prune vpns --batch_size 16",
    ],
    "distilling": ["distilling"],
    "measuring": ["measuring"],
    "dimensions": ["dimensions"],
    "reranking": ["reranking", "reranking --model blip"],
    "streaming": ["streaming", "streaming --overhead"],
    "chita": ["chita --every 50"],
}
"""Part -> its benchmarks, with options."""

LONG = ("chita", "streaming")

PAGE, FOUND = Path("docs/cost.md"), Path("docs/cost.json")
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = [part for part in PARTS if part not in LONG]
    parser.add_argument(
        "parts", nargs="*", default=usual, help=f"of {', '.join(PARTS)} (default: all but {' and '.join(LONG)})"
    )
    return parser.parse_args()


def measured(words: str) -> dict:
    """The results of a benchmark, with date and machine."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        name, *options = words.split()
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options, "--json", str(file)], check=True)
        found = json.loads(file.read_text())
    on = f"torch {torch.__version__.partition('+')[0]}, {os.cpu_count()} cores"
    return {"found": found, "date": date.today().isoformat(), "on": on}


def table(everything: dict[str, dict]) -> str:
    """Rows in the order of `PARTS`."""
    lines = ["| measured | value | wanted | when |", "|---|---:|---:|---|"]
    for words in (words for part in PARTS.values() for words in part if words in everything):
        of = everything[words]
        for found in (Finding(**fields) for fields in of["found"]):
            bound = "" if found.most is None else f"≤ {found.most:.3g}"
            value = f"**{found.shown}**" if found.broken else found.shown
            lines.append(f"| {found.what} | {value} | {bound} | {of['date']}, {of['on']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the parts, then write both files."""
    args = parse_args()
    for part in args.parts:
        if part not in PARTS:
            raise InputError(f"unknown part '{part}'{nearest(part, PARTS)}: choose from {', '.join(PARTS)}")
    everything = json.loads(FOUND.read_text()) if FOUND.is_file() else {}
    for words in (words for part in args.parts for words in PARTS[part]):
        print(f"\npython -m benchmarks.{words}", flush=True)
        everything[words] = measured(words)
        FOUND.write_text(json.dumps(everything, indent=1) + "\n")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table(everything)}{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
