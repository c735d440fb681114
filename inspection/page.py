"""A page that stands alone: one HTML file with its style in it, no script, nothing fetched, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --page: #fafaf8; --ink: #1d2125; --soft: #5d6770; --line: #dde1e4; --card: #ffffff;
  --track: #e6e9ec; --heat: #1f5fa8; --on-heat: #ffffff; --warn: #7a4f00; --warn-back: #fff3d1;
  --m0: #3b6fb6; --m1: #c2572b; --m2: #4d8f4a; --m3: #8a5aa8; --m4: #b59a2d; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171a; --ink: #e5e8ea; --soft: #9aa5ae; --line: #2d343a; --card: #1b2024; --track: #2b3238;
    --heat: #6ea8f0; --on-heat: #0b1118; --warn: #f2c771; --warn-back: #33290f;
    --m0: #6f9fe0; --m1: #e58a5f; --m2: #7cbd78; --m3: #b78ad6; --m4: #d6bd58; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: clamp(1.15rem, 5vw, 1.5rem); line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .5rem; }
p { margin: .4rem 0; max-width: 46rem; }
.soft { color: var(--soft); }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem;
  flex: 1 1 9rem; }
.card b { display: block; font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.warning { background: var(--warn-back); color: var(--warn); border-radius: 8px; padding: .5rem .9rem; margin: .5rem 0;
  max-width: none; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: .2rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: var(--page); }
.texts th:last-child, .texts td:last-child { text-align: left; }
tr.block td { font-weight: 600; border-bottom-color: transparent; padding-top: .55rem; }
tr.leaf td:first-child { padding-left: 1.1rem; }
td.bad { color: var(--warn); font-weight: 600; }
details { border-top: 1px solid var(--line); padding: .4rem 0; }
summary { cursor: pointer; padding: .2rem 0; white-space: nowrap; }
summary svg { margin: 0 .6rem; }
svg { max-width: 100%; height: auto; vertical-align: middle; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg.bar { width: min(11rem, 38vw); height: .65rem; border-radius: 2px; }
td svg.bar { width: clamp(4.5rem, 12vw, 10rem); max-width: none; }
.chart svg { min-width: 44rem; }
.track { fill: var(--track); } .mark { fill: var(--ink); } .grid { stroke: var(--line); } .asked { stroke: var(--ink); }
.heat { fill: var(--heat); } svg text.on { fill: var(--on-heat); }
svg text.off { fill: var(--ink); }
.m0 { fill: var(--m0); } .m1 { fill: var(--m1); } .m2 { fill: var(--m2); }
.m3 { fill: var(--m3); } .m4 { fill: var(--m4); }
.half { fill-opacity: .45; }
.key { display: inline-block; margin-right: 1rem; } .key svg { width: .8rem; height: .8rem; margin-right: .35rem; }
figure { margin: 0; max-width: 100%; }
.maps { display: flex; flex-wrap: wrap; gap: 1.5rem; }
"""


def page(title: str, subtitle: str, parts: Iterable[str], style: str = "") -> str:
    """The whole document; `parts` are HTML, title and subtitle plain text. style: rules besides those of every page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(subtitle)}</p>\n'
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def cards(values: Sequence[tuple[str, str]]) -> str:
    """The numbers to see first: (number, what it is)."""
    made = "".join(
        f'<div class="card"><b>{escape(number)}</b><span class="soft">{escape(what)}</span></div>'
        for number, what in values
    )
    return f'<div class="cards">{made}</div>'


def paragraph(text: str, kind: str = "") -> str:
    """Plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def heading(text: str) -> str:
    """Of a section."""
    return f"<h2>{escape(text)}</h2>"


def table(head: Sequence[str], rows: Iterable[str], kind: str = "") -> str:
    """A table of rows made by `row`, in a box that scrolls on narrow screens.

    kind: "texts" where the last column is of texts, and begins at its left.
    """
    opened = f'<table class="{kind}">' if kind else "<table>"
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        f'<div class="wide">{opened}<thead><tr>{names}</tr></thead><tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def row(cells: Sequence[str], kind: str = "") -> str:
    """One row; cells that begin with `<svg` or `<td` are HTML, all others plain text."""
    made = "".join(
        cell if cell.startswith("<td") else f"<td>{cell if cell.startswith('<svg') else escape(cell)}</td>"
        for cell in cells
    )
    return f'<tr class="{kind}">{made}</tr>' if kind else f"<tr>{made}</tr>"


def bad(text: str, is_bad: bool) -> str:
    """A cell that is marked where it says something bad."""
    return f'<td class="bad">{escape(text)}</td>' if is_bad else f"<td>{escape(text)}</td>"
