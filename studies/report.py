"""Tables, curves and one page from the results of grids.

index.html is self-contained; its parts are also in tables/ (Markdown, LaTeX for booktabs, CSV) and pictures/ (PNG,
SVG). parts.json lists them, so that the next report to the same folder removes those that it does not have.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from console.errors import InputError
from console.results import result_console
from console.words import counted
from inspection.page import COLOURS, render
from models import file_name
from storage.atomic import check_writable, write_json, write_text
from studies.chapter import Chapter, chapter_of, overview
from studies.costs import check_cost
from studies.looks import HUES
from studies.loyalty import loyalty_table
from studies.markup import latex, markdown, table_csv
from studies.metrics import choose, task_words
from studies.pairs import Pair, pairs_table
from studies.pictures import save
from studies.places import short
from studies.published import read_published
from studies.reading import Results, read_results
from studies.records import LAYERS, PUBLISHED, RUNS, SCORES, csv_text, layer_rows, published_rows, run_rows, score_rows
from studies.rows import UNPRUNED
from studies.scores import Scores
from studies.version import packages

FORMATS = {"md": markdown, "tex": latex, "csv": table_csv}
"""Extension of a table's file -> its writer."""

TEMPLATE = Path(__file__).parent / "templates" / "report.html"


def write_report(args: argparse.Namespace, notes: Sequence[str] = ()) -> None:
    """Read results and write the report. args: the command line of `experiments.py report`. notes: shown first."""
    check_cost(args.cost)
    results = read_results(args.results_of, Path(args.results), Path(args.work), args.only)
    results = replace(results, notes=(*notes, *results.notes))
    scores = Scores(results)
    chosen = choose(args.metrics, scores.known)
    published = read_published(Path(args.published), scores) if args.published else None
    folder = Path(args.output) if args.output else common(results) / ("report-only" if args.only else "report")
    if folder.is_file():
        raise InputError(f"{folder} is a file: name a folder with --output")
    check_writable(folder)
    chapters = [chapter_of(scores, model, chosen, args.cost, published) for model in results.models]
    made = [table for chapter in chapters for table in chapter.tables().values()]
    made.append(overview(chapters))
    if args.pairs:
        known = [*UNPRUNED, *results.order]
        made.append(pairs_table(scores, [Pair.of(text, known, scores.known) for text in args.pairs]))
    if args.loyalty:
        if (loyalty := loyalty_table(scores)) is None:
            raise InputError("--loyalty needs scores or answers of single items, and these results have none")
        made.append(loyalty)
    tables = {f"{table.name}.{ending}": write(table) for table in made if table for ending, write in FORMATS.items()}
    tables["scores.csv"] = csv_text(SCORES, score_rows(scores))
    tables["runs.csv"] = csv_text(RUNS, run_rows(results))
    if layers := [row for chapter in chapters for row in layer_rows(chapter.model, chapter.layers)]:
        tables["layers.csv"] = csv_text(LAYERS, layers)
    if published is not None:
        tables["published.csv"] = csv_text(PUBLISHED, published_rows(scores, published))
    for name, text in tables.items():
        write_text(folder / "tables" / name, text)
    pictures = write_pictures(chapters, folder / "pictures")
    write_text(folder / "index.html", report_page(chapters))
    forget_earlier(folder, [*(f"tables/{name}" for name in tables), *(f"pictures/{name}" for name in pictures)])
    screen = result_console()
    for note in (*results.notes, *(published.notes if published else ())):
        screen.print(f"note: {note}", markup=False, highlight=False)
    count = f"{counted(len(results.tasks), 'run')} of tasks and {counted(len(results.prunings), 'pruning')}"
    screen.print(f"{count} in {short(folder / 'index.html')}, next to tables/ and pictures/", markup=False)


def common(results: Results) -> Path:
    """<results>/<grid>, or of several grids their common parent folder."""
    return Path(os.path.commonpath([(place.results / place.grid).absolute() for place in results.places]))


def write_pictures(chapters: Sequence[Chapter], folder: Path) -> list[str]:
    """Draw pictures of curves, sizes and costs per model, and a map of layers per sparsity; returns file names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for made in chapters:
        for kind, panels in (("curves", made.curves()), ("sizes", made.size_paretos()), ("pareto", made.paretos())):
            if panels:
                names.append(f"{file_name(made.model)}_{kind}")
                save([panel.draw for panel in panels], folder / names[-1], **panels[0].size)
        for panel in made.maps():
            names.append(panel.name.replace("-layers-", "_layers_"))
            save([panel.draw], folder / names[-1], 1, **panel.size)
    return [f"{name}.{ending}" for name in names for ending in ("png", "svg")]


def report_page(chapters: Sequence[Chapter]) -> str:
    """The whole page."""
    results, models = chapters[0].scores.results, [chapter.model for chapter in chapters]
    seeds = {run.seed for run in results.tasks if run.chance}
    subtitle = (
        f"{', '.join(short(place.origin) for place in results.places)}: {counted(len(results.tasks), 'run')} of tasks, "
        f"{counted(len(results.prunings), 'pruning')}, {counted(len(results.order), 'pruner')}, "
        f"{counted(len(seeds), 'seed')}"
    )
    return render(
        TEMPLATE,
        f"Pruning {models[0]}" if len(models) == 1 else f"Pruning {', '.join(models[:-1])} and {models[-1]}",
        subtitle,
        colours=COLOURS | HUES,
        results=results,
        chapters=chapters,
        overview=overview(chapters),
        everyone={name: look for chapter in chapters for name, look in chapter.looks.items()},
        made_with=made_with(chapters[0].scores),
        file_name=file_name,
        task_words=task_words,
    )


def made_with(scores: Scores) -> list[str]:
    """Sentences on commits and versions of the results, and on columns without a significance test."""
    results = [run.result for run in (*scores.results.tasks, *scores.results.prunings)]
    commits = Counter(short_commit(result.commit) for result in results)
    used = Counter(", ".join(map(" ".join, result.packages.items())) for result in results)
    days = sorted(result.finished[:10] for result in results)
    most = [f"{name} ({counted(count, 'run')})" for name, count in commits.most_common(5)]
    return [
        f"Commits: {', '.join(most)}.",
        *(f"Made with {words} ({counted(count, 'run')})." for words, count in used.most_common(3)),
        f"Finished between {days[0]} and {days[-1]}.",
        *(f"Not tested in {counted(count, 'column')}: {why}." for why, count in scores.untested.items()),
        f"Report by Python {packages()['python']}.",
    ]


def short_commit(commit: str | None) -> str:
    """The first twelve characters, and whether files differed from the commit."""
    name, changed, _ = (commit or "unknown").partition("+")
    return name[:12] + (" with changes" if changed else "")


def forget_earlier(folder: Path, parts: list[str]) -> None:
    """Remove the parts of an earlier report that this one does not have; unlisted files stay.

    parts.json may be edited or foreign: only files directly in tables/ and pictures/ are removed.
    """
    listed = folder / "parts.json"
    before: Any = None
    if listed.is_file():
        with contextlib.suppress(ValueError):
            before = json.loads(listed.read_text(encoding="utf-8"))
    names = {name for name in before if isinstance(name, str)} if isinstance(before, list) else set()
    for name in names - set(parts):
        if str(Path(name).parent) in ("tables", "pictures") and (folder / name).is_file():
            (folder / name).unlink()
    write_json(listed, sorted(parts))
