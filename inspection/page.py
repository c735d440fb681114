"""Self-contained HTML pages: one file from a template, with its style, without scripts or external files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from console.words import counted, pct
from inspection.comparison import Comparison
from inspection.layers import Counts, layer_tree, total
from inspection.reading import MaskFile
from inspection.stability import Stability

TEMPLATES = Path(__file__).parent / "templates"

COLOURS = {
    "page": ("#fafaf8", "#14171a"),
    "ink": ("#1d2125", "#e5e8ea"),
    "soft": ("#5d6770", "#9aa5ae"),
    "line": ("#dde1e4", "#2d343a"),
    "card": ("#ffffff", "#1b2024"),
    "track": ("#e6e9ec", "#2b3238"),
    "heat": ("#1f5fa8", "#6ea8f0"),
    "on-heat": ("#ffffff", "#0b1118"),
    "warn": ("#7a4f00", "#f2c771"),
    "warn-back": ("#fff3d1", "#33290f"),
    "m0": ("#3b6fb6", "#6f9fe0"),
    "m1": ("#c2572b", "#e58a5f"),
    "m2": ("#4d8f4a", "#7cbd78"),
    "m3": ("#8a5aa8", "#b78ad6"),
    "m4": ("#b59a2d", "#d6bd58"),
}
"""CSS variable -> its colour on a light page and on a dark one; m0 to m4 are for modalities."""

Cells = list[tuple[str, bool]]
"""The texts of a row's cells, and whether each is a warning."""


def render(template: Path, title: str, subtitle: str, **values: Any) -> str:
    """The page of a template, which may extend `page.html` and use `macros.html`."""
    return environment(template.parent).get_template(template.name).render(title=title, subtitle=subtitle, **values)


def environment(folder: Path) -> Environment:
    """The environment for a folder's templates: all values are escaped, and a missing one is an error."""
    loader = FileSystemLoader([folder, TEMPLATES])
    made = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
        keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {"pct": pct, "count": lambda number: f"{number:,}"}
    made.globals |= {"colours": COLOURS, "colour": colour}
    return made


def colour(number: int) -> str:
    """CSS class of a modality's colour."""
    return f"m{number % 5}"


def inspection_page(file: MaskFile, counts: Mapping[str, Counts], warnings: Sequence[str]) -> str:
    """The page of a mask: totals, warnings, a chart of all layers, and the tree of layers."""
    modalities = file.mask.layers_by_modality()
    numbers = {name: number for number, names in enumerate(modalities.values()) for name in names}

    def measure(names: Sequence[str]) -> tuple[float, None, str]:
        share = total(counts[name] for name in names).sparsity
        return share, None, pct(share, 2)

    def cells(names: Sequence[str]) -> Cells:
        found = total(counts[name] for name in names)
        dead = [(found.dead_outputs, found.outputs), (found.dead_inputs, found.inputs)]
        kept: Cells = [(f"{found.kept:,}", False), (f"{found.size:,}", False)]
        return kept + [(f"{count:,} of {of:,}", count > 0) for count, of in dead]

    return render(
        TEMPLATES / "mask.html", f"Mask {file.label}", file.origin or str(file.path), warnings=warnings,
        whole=total(counts.values()), legend=[(colour(number), modality) for number, modality in enumerate(modalities)],
        columns=[(name, colour(numbers[name]), count.sparsity) for name, count in counts.items()],
        tree=layer_tree(modalities), measure=measure, cells=cells,
    )  # fmt: skip


def comparison_page(comparison: Comparison) -> str:
    """The page of a comparison: the masks, their IoU overall and by modality, and the tree of layers."""
    title = f"{len(comparison.files)} masks compared"
    subtitle = "IoU: kept by both among kept by either"
    return render(TEMPLATES / "comparison.html", title, subtitle, **_compared(comparison))


def stability_page(stability: Stability) -> str:
    """The page of several draws: their IoU, and the share of weights that all of them keep."""
    compared, votes = stability.comparison, stability.votes
    places = [("all", "heat", stability.overall, compared.layers)]
    if len(votes) > 1:
        places += [(name, colour(k), votes[name], compared.modalities[name]) for k, name in enumerate(votes)]
    rows = []
    for place, kind, of, names in places:
        iou = compared.iou(names)
        shares = (of.by_all, of.by_some, of.by_none, of.core, of.core_by_chance, iou.mean, iou.sd)
        rows.append((place, kind, of, (*shares, compared.chance(names))))
    origin = compared.files[0].origin
    return render(
        TEMPLATES / "stability.html", f"{len(compared.files)} draws of one pruning",
        origin.rpartition(", seed")[0] or origin, pairs=counted(len(compared.pairs), "pair"), places=rows,
        overall=stability.overall, all_same=stability.all_same, **_compared(compared),
    )  # fmt: skip


def _compared(comparison: Comparison) -> dict[str, Any]:
    """The values of the template's section on all layers."""
    many = len(comparison.pairs) > 1

    def measure(names: Sequence[str]) -> tuple[float, float, str]:
        mean = comparison.iou(names).mean
        return mean, comparison.chance(names), pct(mean)

    def cells(names: Sequence[str]) -> Cells:
        if many:
            iou = comparison.iou(names)
            words = [f"{100 * iou.low:.1f} to {100 * iou.high:.1f}"]
        else:
            found = comparison.overlap((0, 1), names)
            words = [f"{found.a:,}", f"{found.b:,}", f"{found.both:,}", pct(found.overlap)]
        return [(word, False) for word in (pct(comparison.chance(names)), *words)]

    return {"comparison": comparison, "tree": layer_tree(comparison.modalities), "measure": measure, "cells": cells}
