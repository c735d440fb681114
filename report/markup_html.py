"""Tables of a report as HTML: heads over several columns, a first column that stays in sight, two lines a cell."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from report.palette import Look
from report.tables import Cell, Row, Table

STYLE = """
body { max-width: 78rem; }
h3 { font-size: .95rem; margin: 1.75rem 0 .5rem; }
nav { margin: .75rem 0; } nav a { color: var(--blue); margin-right: 1rem; }
.wide:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
.wide { scrollbar-width: thin; }
table.paper { border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); border-collapse: separate;
  border-spacing: 0; margin: .5rem 0 .25rem; }
table.paper th, table.paper td { padding: .22rem .5rem; border: 0; }
table.paper thead th { font-weight: 500; text-align: center; padding-bottom: .1rem; }
table.paper thead tr:first-child th { font-weight: 600; color: var(--ink); padding-top: .4rem; }
table.paper thead tr:last-child th { text-align: right; padding-bottom: .3rem; border-bottom: 1px solid var(--soft); }
table.paper th.over { box-shadow: inset 0 -1px 0 var(--line); }
table.paper .new { padding-left: 1.35rem; }
table.paper th.row, table.paper thead th:first-child { position: sticky; left: 0; background: var(--page);
  text-align: left; padding-left: 0; padding-right: .9rem; z-index: 1; }
table.paper th.row { color: var(--ink); font-weight: 500; }
table.paper thead tr:last-child th:first-child { text-align: left; }
table.paper tr.dense td, table.paper tr.dense th { border-bottom: 1px solid var(--soft); padding-bottom: .35rem; }
table.paper tr.dense td[colspan] { text-align: center; }
table.paper tr.section th { padding-top: .8rem; font-weight: 600; text-align: left; }
table.paper tbody tr:hover td, table.paper tbody tr:hover th.row { background: var(--card); }
table.paper tbody th, table.paper tbody td { vertical-align: baseline; }
.paper i { display: inline-block; min-width: 2.6rem; text-align: left; font-style: normal; color: var(--soft);
  font-size: .74rem; padding-left: .5rem; }
td small { display: block; color: var(--soft); font-size: .72rem; line-height: 1.2; }
td u { text-underline-offset: .18em; text-decoration-thickness: 1.5px; }
td sup { display: inline-block; width: 0; line-height: 0; }
td b { font-weight: 700; }
td.none { color: var(--soft); }
svg.chip { width: 1.7rem; height: .7rem; margin-right: .45rem; max-width: none; }
.note { color: var(--soft); font-size: .85rem; max-width: 60rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem 2rem;
  margin: .75rem 0; }
.panels svg, .map svg { display: block; width: 100%; }
.panels figure { max-width: 35rem; }
.map { overflow-x: auto; margin: .75rem 0; } .map svg { min-width: 40rem; max-width: 60rem; }
"""


def html_table(table: Table, looks: Mapping[str, Look] | None = None) -> str:
    """looks: pruner -> how it looks in the pictures, shown before its name."""
    first = _first_columns(table)
    head, spread = [], _columns_with_spread(table)
    for level, heads in enumerate(table.heads):
        last, column = level == len(table.heads) - 1, 0
        cells = [f'<th scope="col">{escape(table.first) if last else ""}</th>']
        for words, span in heads:
            kinds = ["new"] * (column in first) + ["over"] * (not last)
            over = f' colspan="{span}" scope="colgroup"' if span > 1 else ' scope="col"'
            room = "<i></i>" if last and column in spread else ""
            cells.append(f"<th{over}{_class(kinds)}>{escape(words)}{room}</th>")
            column += span
        head.append(f"<tr>{''.join(cells)}</tr>")
    body = [_row(row, table, first, spread, looks or {}) for row in table.rows]
    notes = "".join(f"<br>{escape(note)}" for note in table.notes).removeprefix("<br>")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.caption)}"><table class="paper">'
        f"<thead>{''.join(head)}</thead><tbody>\n" + "\n".join(body) + "\n</tbody></table></div>"
        f'<p class="note">{notes}</p>'
    )


def chip(look: Look) -> str:
    """A piece of a pruner's curve."""
    dashes = ("", "6 3", "2 2.5", "8 2 2 2", "12 3")[look.dashing]
    marks = {
        "o": '<circle cx="14" cy="6" r="3.6"/>',
        "s": '<rect x="10.8" y="2.8" width="6.4" height="6.4"/>',
        "^": '<path d="M14 1.6 18 9.4H10Z"/>',
        "D": '<path d="M14 1.4 18.6 6 14 10.6 9.4 6Z"/>',
        "v": '<path d="M14 10.4 18 2.6H10Z"/>',
    }
    return (
        f'<svg class="chip" viewBox="0 0 28 12" aria-hidden="true" fill="var(--{look.hue})"><path d="M0 6H28" '
        f'stroke="var(--{look.hue})" stroke-width="1.8" stroke-dasharray="{dashes}"/>{marks[look.marker]}</svg>'
    )


def _row(row: Row, table: Table, first: set[int], spread: set[int], looks: Mapping[str, Look]) -> str:
    if row.kind == "section":
        width = len(table.heads[-1])
        name = f'<th class="row" scope="rowgroup">{escape(row.label)}</th>'
        return f'<tr class="section">{name}<td colspan="{width}"></td></tr>'
    drawn = chip(looks[row.label]) if row.label in looks else ""
    cells, column = [f'<th class="row" scope="row">{drawn}{escape(row.label)}</th>'], 0
    for cell in row.cells:
        cells.append(_cell(cell, column in first, column in spread))
        column += cell.span
    return f"<tr{_class([row.kind])}>{''.join(cells)}</tr>"


def _cell(cell: Cell, first: bool, spread: bool) -> str:
    """spread: room for it is left, so that numbers stand below each other."""
    text = escape(cell.text) or "–"
    text = {1: f"<b>{text}</b>", 2: f"<u>{text}</u>"}.get(cell.rank, text)
    text += f"<sup>{cell.mark}</sup>" if cell.mark else ""
    if cell.span == 1:
        text += f"<i>{f'±&#8239;{escape(cell.spread)}' if cell.spread else ''}</i>" if spread else ""
        seeds = f"({escape(cell.seeds)})" if cell.seeds else ""
        share = f"{escape(cell.share)}&#8239;%" if cell.share else ""
        if share or seeds:
            text += f"<small>{share}{f'<i>{seeds}</i>' if spread or seeds else ''}</small>"
    else:
        text += f" <i>±&#8239;{escape(cell.spread)}</i>" if cell.spread else ""
        text += f" <i>({escape(cell.seeds)})</i>" if cell.seeds else ""
    over = f' colspan="{cell.span}"' if cell.span > 1 else ""
    title = f' title="{escape(cell.title)}"' if cell.title else ""
    return f"<td{over}{title}{_class(['new'] * first + ['none'] * (not cell.text))}>{text}</td>"


def _class(kinds: list[str]) -> str:
    words = " ".join(filter(None, kinds))
    return f' class="{words}"' if words else ""


def _columns_with_spread(table: Table) -> set[int]:
    rows = [row.cells for row in table.rows if all(cell.span == 1 for cell in row.cells)]
    return {column for cells in rows for column, cell in enumerate(cells) if cell.spread or cell.seeds}


def _first_columns(table: Table) -> set[int]:
    """Columns with which a group of the lowest head above the last begins; they stand a little apart."""
    if len(table.heads) < 2:
        return set()
    starts, column = set(), 0
    for _, span in table.heads[-2]:
        starts.add(column)
        column += span
    return starts
