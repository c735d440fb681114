"""An HTML page of tables of errors: heat maps of heads, groups of neurons or channels, and layers; what a plan keeps.

Several tables, such as those of fewer samples, are compared with the first one by Spearman's rank correlation.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from scipy.stats import spearmanr

from console.errors import InputError
from inspection.page import render
from models.base import Model
from models.parts import all_sets
from models.plans import Plan
from shrinking.choosing import KINDS
from shrinking.errors import Errors, towers_of
from storage.atomic import write_text

TEMPLATE = Path(__file__).parent / "templates" / "errors.html"

CLIP = 98
"""Percentile of errors at which the colour scale ends: one outlier would leave all other parts pale."""


class Panel(NamedTuple):
    """errors: [sets, groups], NaN for none. stays: groups that a plan keeps (at least partly). columns: numbers."""

    tower: str
    kind: str
    rows: list[str]
    errors: np.ndarray
    stays: np.ndarray
    columns: list[int]


def by_unit(table: Errors, name: str) -> np.ndarray:
    """The error of each unit's group [count]; NaN where it was not measured."""
    groups = table.groups[name].numpy()
    return np.where(groups >= 0, table.errors[name].numpy()[groups], np.nan)


def pieces(model: Model, table: Errors, kind: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """(tower, name of a set, units of the set in that tower [count] bool) for all measured sets of a kind."""
    for one in all_sets(model):
        if one.kind == kind and one.name in table.groups:
            towers = towers_of(model, one)
            for tower in dict.fromkeys(towers):
                yield tower, one.name, np.array([tower == other for other in towers])


def panels(model: Model, table: Errors, kept: Mapping[str, Any]) -> list[Panel]:
    """A panel for each kind and tower, by kind. kept: name of a set -> kept units; other sets are kept whole."""
    found = []
    for kind in KINDS:
        rows: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
        columns: dict[str, list[int]] = {}
        for tower, name, own in pieces(model, table, kind):
            groups = np.where(own, table.groups[name].numpy(), -1)
            stays = kept[name].numpy() if name in kept else np.ones(len(own), dtype=bool)
            numbers = sorted(set(groups[groups >= 0].tolist()))
            if kind == "layers":
                columns[tower] = np.nonzero(groups >= 0)[0].tolist()
            if numbers:
                left = np.array([stays[groups == number].any() for number in numbers])
                rows.setdefault(tower, []).append((name, table.errors[name].numpy()[numbers], left))
        for tower, of in rows.items():
            wide = max(len(errors) for _, errors, _ in of)
            square = np.full((len(of), wide), np.nan)
            stay = np.ones((len(of), wide), dtype=bool)
            for row, (_, errors, left) in enumerate(of):
                square[row, : len(errors)], stay[row, : len(errors)] = errors, left
            places = columns.get(tower, []) if len(of) == 1 else []
            found.append(Panel(tower, kind, [name for name, _, _ in of], square, stay, places or list(range(wide))))
    return found


def short(names: Sequence[str]) -> list[str]:
    """Names without their common first and last parts: `a.0.b`, `a.1.b` -> `0`, `1`; a single name stays."""
    parts = [name.split(".") for name in names]
    if len(parts) < 2:
        return list(names)
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({one[end] for one in parts}) == 1:
            for one in parts:
                del one[end]
    return [".".join(one) for one in parts]


def draw(found: Sequence[Panel], title: str) -> str:
    """All panels as an SVG: towers side by side with a colour scale per kind; a cross marks removed parts."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    towers = list(dict.fromkeys(panel.tower for panel in found))
    kinds = list(dict.fromkeys(panel.kind for panel in found))
    heights = [max(len(p.rows) for p in found if p.kind == kind) for kind in kinds]
    size = (4.6 * len(towers), sum(0.9 + 0.26 * height for height in heights))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(kinds), len(towers), squeeze=False, height_ratios=[2 + height for height in heights])
    for axis in axes.flat:
        axis.set_visible(False)
    for row, kind in enumerate(kinds):
        own = [panel for panel in found if panel.kind == kind]
        values = np.concatenate([panel.errors[~np.isnan(panel.errors)] for panel in own])
        low, high = min(0.0, np.percentile(values, 100 - CLIP)), np.percentile(values, CLIP)
        for panel in own:
            axis = axes[row, towers.index(panel.tower)]
            axis.set_visible(True)
            image = axis.imshow(panel.errors, vmin=low, vmax=max(high, low + 1e-12), cmap="viridis", aspect="auto")
            y, x = np.nonzero(~panel.stays)
            for colour, width in (("white", 3.0), ("black", 1.2)):  # visible on dark and on bright cells
                axis.plot(x, y, "x", color=colour, markersize=5, markeredgewidth=width)
            grouped = kind in ("neurons", "channels")
            axis.set_title(f"{panel.tower}: {'groups of ' if grouped else ''}{kind}", fontsize=10)
            axis.set_xlabel("group" if grouped else kind.removesuffix("s"), fontsize=8)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=13))
            axis.tick_params(axis="x", labelsize=7)
            if kind == "layers":
                axis.set_xticks(range(len(panel.columns)), panel.columns)
                axis.set_yticks([])
            else:
                axis.set_yticks(range(len(panel.rows)), short(panel.rows), fontsize=7)
                axis.set_ylabel("layer", fontsize=8)
        figure.colorbar(image, ax=[axes[row, towers.index(panel.tower)] for panel in own], pad=0.01)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def agreement(model: Model, tables: Sequence[Errors]) -> list[tuple[str, str, list[float]]]:
    """(tower, kind, rank correlations of each table's errors with the first one's, by unit).

    NaN if the tables share no units, or all errors are equal.
    """
    found: dict[tuple[str, str], list[list[np.ndarray]]] = {}
    for kind in KINDS:
        for tower, name, own in pieces(model, tables[0], kind):
            if np.isnan(by_unit(tables[0], name)[own]).all():
                continue
            columns = found.setdefault((tower, kind), [[] for _ in tables])
            for column, table in zip(columns, tables, strict=True):
                column.append(by_unit(table, name)[own] if name in table.groups else np.full(own.sum(), np.nan))
    rows = []
    for (tower, kind), columns in found.items():
        first, *others = (np.concatenate(column) for column in columns)
        rows.append((tower, kind, [rank_correlation(first, other) for other in others]))
    return rows


def rank_correlation(first: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation over the units that both have."""
    both = ~(np.isnan(first) | np.isnan(other))
    varied = all(len(np.unique(values[both])) > 1 for values in (first, other))
    return float(spearmanr(first[both], other[both]).statistic) if varied else float("nan")


def write_page(model: Model, tables: Mapping[str, Errors], plan: Plan | None, path: Path) -> None:
    """Write the page, atomically. tables: displayed name -> table, all of this model."""
    for table in tables.values():
        table.check_fits(model)
    (name, first), sets = next(iter(tables.items())), all_sets(model)
    if not first.errors:
        raise InputError(
            f"{name} has no errors, so there is nothing to draw: measure again, with other --kinds or --tower"
        )
    shown = panels(model, first, {} if plan is None else plan.kept(sets, model.plan))
    sizes = []
    for panel in shown:
        real = panel.errors[~np.isnan(panel.errors)]
        stays = int(panel.stays[~np.isnan(panel.errors)].sum())
        sizes.append((panel.tower, panel.kind, len(real), stays, real.min(), float(np.median(real)), real.max()))
    about = f"{first.about['model']}, {first.about['criterion']}, seed {first.about['seed']}"
    page = render(
        TEMPLATE, f"Errors of {name}", about, picture=draw(shown, name), sizes=sizes, planned=plan is not None,
        others=list(tables)[1:], agreement=agreement(model, list(tables.values())) if len(tables) > 1 else [],
    )  # fmt: skip
    write_text(path, page)
