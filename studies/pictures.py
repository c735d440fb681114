"""Pictures by matplotlib: as files, and as SVG within a page, with the page's colours and font.

Everything is drawn in the light colours of looks.py; in a page each colour becomes the CSS variable of its name, so
that one picture suits a light and a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

from storage.atomic import atomic_path
from studies.looks import LIGHT

Draw = Callable[[Any], None]
"""Draws on matplotlib's axes."""

WIDTH, HEIGHT = 5.4, 3.6
"""Size of a panel, in inches; 72 units per inch on the page."""

MARGINS = {"left": 0.09, "right": 0.79, "bottom": 0.16, "top": 0.88}
"""Position of the axes, as shares of a panel: the same for all, with room for labels on the right."""

SETTINGS = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["soft"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.8,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["soft"],
    "ytick.color": LIGHT["soft"],
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "path.simplify": False,
}


@contextmanager
def figure(rows: int, columns: int, width: float, height: float, name: str) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes [rows, columns]. name: salt of ids in SVG, which makes files equal."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": name}):
        made = Figure(figsize=(width * columns, height * rows))
        yield made, made.subplots(rows, columns, squeeze=False)


def inline(
    draw: Draw, name: str, words: str, width: float = WIDTH, height: float = HEIGHT, margins: Mapping = MARGINS
) -> str:
    """One panel as an `<svg>` of a page. words: its description, for screen readers."""
    with figure(1, 1, width, height, name) as (made, axes):
        made.subplots_adjust(**margins)
        draw(axes[0, 0])
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        made.savefig(text, format="svg", transparent=True, metadata=nothing)
    return adapted(text.getvalue(), name, words)


def adapted(svg: str, name: str, words: str) -> str:
    """matplotlib's SVG for embedding in a page: without prologue and style, with unique ids and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]+)"', svg)[1]
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="{box}" role="img" aria-label="{escape(words)}">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    # Nothing needs clipping: all that is drawn outside of the axes is meant to be visible.
    svg = re.sub(r' clip-path="[^"]*"|<clipPath.*?</clipPath>', "", svg, flags=re.DOTALL)
    used = set(re.findall(r'href="#([^"]+)"', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = svg.replace('href="#', f'href="#{name}-')
    for role, colour in LIGHT.items():
        svg = svg.replace(colour, f"var(--{role})")
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", svg)
    return re.sub(r"\n\s*", "\n", svg).strip()


def save(
    panels: Sequence[Draw],
    path: Path,
    columns: int = 2,
    width: float = WIDTH,
    height: float = HEIGHT,
    margins: Mapping = MARGINS,
) -> None:
    """Write all panels as one picture, `path`.png and `path`.svg, on white."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    with figure(rows, columns, width, height, path.name) as (made, axes):
        across, up = margins["right"] - margins["left"], margins["top"] - margins["bottom"]
        for number, axis in enumerate(axes.flat):
            row, column = divmod(number, columns)
            left, bottom = (column + margins["left"]) / columns, (rows - 1 - row + margins["bottom"]) / rows
            axis.set_position((left, bottom, across / columns, up / rows))
            if number < len(panels):
                panels[number](axis)
            else:
                axis.set_axis_off()
        for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            with atomic_path(path.with_name(f"{path.name}.{ending}")) as temporary:
                made.savefig(
                    temporary, format=ending, dpi=150, facecolor="white", bbox_inches="tight", metadata=metadata
                )
