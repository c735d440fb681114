"""Tables, curves and one page from the results of grids.

    python experiments.py report configs/experiments/mini.yaml
    python experiments.py report results/mini results/ablation --output reports/both --published paper.csv
Writes index.html, which stands alone, and its parts: tables/ (Markdown, LaTeX for booktabs, CSV), pictures/ (PNG, SVG);
parts.json lists them, so that the next report there removes those that it has not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from pathlib import Path
from typing import Any

from console.errors import InputError
from console.results import result_console
from console.words import counted
from grid.places import short
from grid.steps import DENSE
from report.costs import COSTS, check_cost, costs_of
from report.layers import layer_shares
from report.markup import csv_text, latex, markdown, table_csv
from report.metrics import choose
from report.pages import Chapter, overview, report_page
from report.palette import looks
from report.pictures import save
from report.published import Published, read_published
from report.reading import Results, read_results
from report.records import LAYERS, PUBLISHED, RUNS, SCORES, layer_records, published_records, run_records, score_records
from report.scores import Scores
from storage.atomic import check_writable, write_json, write_text


def parse_args(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="experiments.py report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results_of", nargs="+", metavar="GRID", help="YAML files of grids, or folders of results")
    parser.add_argument("--results", default="results", help="where results of YAML files are (default: results)")
    parser.add_argument(
        "-o",
        "--output",
        help="folder to write (default: report/ in the folder of the results, report-only/ with --only)",
    )
    parser.add_argument(
        "--metrics", nargs="+", default=[], metavar="TASK/METRIC", help="of the main table (default: one a task)"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="AXIS=VALUE,...", help="for example pruner=omp,multiflow sparsity=75"
    )
    parser.add_argument("--cost", default="seconds", help=f"of the Pareto plot: {', '.join(COSTS)} (default: seconds)")
    parser.add_argument("--published", metavar="FILE.csv", help="published numbers to stand beside ours")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Read, count, write."""
    args = parse_args(arguments)
    check_cost(args.cost)
    results = read_results(args.results_of, Path(args.results), args.only)
    scores = Scores(results)
    chosen = choose(args.metrics, scores.known)
    published = read_published(Path(args.published), scores) if args.published else None
    folder = Path(args.output) if args.output else common(results) / ("report-only" if args.only else "report")
    if folder.is_file():
        raise InputError(f"{folder} is a file: name a folder with --output")
    check_writable(folder)
    chapters = [chapter(results, scores, model, chosen, args.cost, published) for model in results.models]
    tables = made_tables(chapters)
    tables["scores.csv"] = csv_text(score_records(scores), SCORES)
    tables["runs.csv"] = csv_text(run_records(results), RUNS)
    if layers := [row for made in chapters for row in layer_records(made.model, made.layers)]:
        tables["layers.csv"] = csv_text(layers, LAYERS)
    if published is not None:
        tables["published.csv"] = csv_text(published_records(scores, published), PUBLISHED)
    for name, text in tables.items():
        write_text(folder / "tables" / name, text)
    pictures = write_pictures(chapters, folder / "pictures")
    write_text(folder / "index.html", report_page(chapters))
    forget_earlier(folder, [*(f"tables/{name}" for name in tables), *(f"pictures/{name}" for name in pictures)])
    screen = result_console()
    for note in (*results.notes, *(published.notes if published else ())):
        screen.print(f"note: {note}", markup=False, highlight=False)
    count = f"{counted(len(results.tasks), 'run')} of tasks and {counted(len(results.prunings), 'pruning')}"
    screen.print(f"{count} in {short(folder / 'index.html')}, beside tables/ and pictures/", markup=False)


def chapter(
    results: Results, scores: Scores, model: str, chosen: dict[str, list[str]], cost: str, published: Published | None
) -> Chapter:
    """All there is on a model."""
    columns = [(task, metric) for task, metrics in chosen.items() for metric in metrics if task in scores.tasks(model)]
    columns = [(task, metric) for task, metric in columns if metric in scores.metrics(model, task)]
    pruners = scores.pruners(model)
    layers = {sparsity: layer_shares(results, model, pruners, sparsity) for sparsity in scores.sparsities(model)}
    methods = {run.pruner: run.method for run in (*results.tasks, *results.prunings) if run.pruner != DENSE}
    everyone = looks(list(results.order), methods)
    return Chapter(
        model,
        scores,
        columns or scores.main(model),
        {name: everyone[name] for name in pruners},
        {name: found for name in COSTS if (found := costs_of(results, model, pruners, name))},
        cost,
        {sparsity: shares for sparsity, shares in layers.items() if shares is not None},
        published,
    )


def common(results: Results) -> Path:
    """The folder of the results, or the one above them all."""
    return Path(os.path.commonpath([folder.absolute() for folder in results.folders]))


def made_tables(chapters: list[Chapter]) -> dict[str, str]:
    """File name -> text of every table, in three formats."""
    tables = [table for made in chapters for table in made.tables().values()]
    if (of_all := overview(chapters)) is not None:
        tables.append(of_all)
    return {
        f"{table.name}.{ending}": write(table)
        for table in tables
        for ending, write in (("md", markdown), ("tex", latex), ("csv", table_csv))
    }


def write_pictures(chapters: list[Chapter], folder: Path) -> list[str]:
    """Curves and Pareto plots of a model in one picture each, and a map of layers for each sparsity; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for made in chapters:
        for kind, panels in (("curves", made.curves()), ("pareto", made.paretos())):
            if panels:
                names.append(f"{made.model.replace('/', '--')}_{kind}")
                save([panel.draw for panel in panels], folder / names[-1])
        for panel, size in made.maps():
            names.append(panel.name.replace("-layers-", "_layers_"))
            save([panel.draw], folder / names[-1], 1, **size)
    return [f"{name}.{ending}" for name in names for ending in ("png", "svg")]


def forget_earlier(folder: Path, parts: list[str]) -> None:
    """Remove the parts of an earlier report that this one does not have; what nobody listed stays.

    The list may come from elsewhere: of what it names, only files right in tables/ and pictures/ are touched.
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
