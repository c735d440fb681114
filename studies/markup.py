"""Tables as Markdown, as LaTeX with booktabs, and as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from studies.records import csv_text
from studies.tables import DAGGER, Cell, Table

SPECIAL = {
    "\\": r"\textbackslash{}", "%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--",
    "<": "$<$", ">": "$>$", "|": r"\textbar{}", DAGGER: r"$\dagger$",
}  # fmt: skip
"""Characters that LaTeX does not print literally."""

MARKS = {DAGGER: r"\dagger"}
"""The same in math mode."""


def markdown(table: Table) -> str:
    """A table in GitHub's Markdown; the lines of the header are joined into one."""
    lines = [f"**{_plain(table.caption)}**", ""]
    lines += [_line([table.first, *_joined_heads(table)]), _line(["---", *["---:"] * table.width()])]
    for row in table.rows:
        if row.kind == "section":
            lines.append(_line([f"**{_plain(row.label)}**", *[""] * table.width()]))
            continue
        cells = []
        for cell in row.cells:
            cells += [_markdown_cell(cell), *[""] * (cell.span - 1)]
        lines.append(_line([_plain(row.label), *cells]))
    lines += ["", *(f"{_plain(note)}\n" for note in table.notes)]
    return "\n".join(lines)


def latex(table: Table) -> str:
    r"""A `table` environment; needs \usepackage{booktabs}."""
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}[t]", r"\centering\small", r"\setlength{\tabcolsep}{4pt}"]
    lines += [rf"\caption{{{escape(table.caption)}. {' '.join(map(escape, table.notes))}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * table.width()}}}", r"\toprule"]
    for number, heads in enumerate(table.heads):
        last = number == len(table.heads) - 1
        cells = [_spanning(escape(words), span) for words, span in heads]
        lines.append(" & ".join([escape(table.first) if last else "", *cells]) + r" \\")
        if not last:
            lines.append(_rules(heads))
    lines.append(r"\midrule")
    for number, row in enumerate(table.rows):
        if row.kind == "section":
            lines += [r"\midrule"] * (number > 0)
            lines.append(rf"\multicolumn{{{table.width() + 1}}}{{l}}{{\emph{{{escape(row.label)}}}}} \\")
            continue
        lines.append(" & ".join([escape(row.label), *map(_latex_cell, row.cells)]) + r" \\")
        following = table.rows[number + 1].kind if number + 1 < len(table.rows) else "end"
        if row.kind == "dense" and not following:
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def table_csv(table: Table) -> str:
    """The displayed numbers of a table; headers joined, standard deviations in columns of their own, if any."""
    heads = _joined_heads(table)
    spread = any(cell.spread for row in table.rows for cell in row.cells)
    columns = [table.first, *(name for head in heads for name in ([head, f"{head} sd"] if spread else [head]))]
    made, section = [], ""
    for row in table.rows:
        if row.kind == "section":  # appended to the labels of the rows below
            section = row.label
            continue
        values = [f"{row.label} {section}".strip()]
        for cell in row.cells:
            text = cell.text.replace("−", "-")  # CSV readers do not parse a typographical minus
            values += [text, cell.spread] if spread else [text]
            values += [""] * ((cell.span - 1) * (2 if spread else 1))
        made.append(values)
    return csv_text(columns, made)


def escape(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    return "".join(SPECIAL.get(sign, sign) for sign in text)


def _joined_heads(table: Table) -> list[str]:
    """One name per column, joined from all lines of the header."""
    levels = [[words for words, span in heads for _ in range(span)] for heads in table.heads]
    return [" ".join(dict.fromkeys(words)) for words in zip(*levels, strict=True)]


def _rules(heads: Sequence[tuple[str, int]]) -> str:
    rules, column = [], 2
    for _, span in heads:
        rules.append(rf"\cmidrule(lr){{{column}-{column + span - 1}}}")
        column += span
    return "".join(rules)


def _latex_cell(cell: Cell) -> str:
    text = escape(cell.text) or "--"
    if cell.rank:
        text = rf"\{'textbf' if cell.rank == 1 else 'underline'}{{{text}}}"
    if cell.mark:
        text += rf"$^{{{MARKS.get(cell.mark, cell.mark)}}}$"
    if cell.spread:
        text += rf"{{\scriptsize$\pm${escape(cell.spread)}}}"
    if cell.seeds:
        text += rf"{{\scriptsize~({cell.seeds})}}"
    return _spanning(text, cell.span)


def _spanning(text: str, span: int) -> str:
    return text if span == 1 else rf"\multicolumn{{{span}}}{{c}}{{{text}}}"


def _markdown_cell(cell: Cell) -> str:
    if not cell.text:
        return "–"
    text = {1: f"**{cell.text}**", 2: f"<u>{cell.text}</u>"}.get(cell.rank, cell.text) + cell.mark.replace("*", r"\*")
    text += f" ± {cell.spread}" if cell.spread else ""
    text += f" [{cell.share} %]" if cell.share else ""
    return text + (f" ({cell.seeds})" if cell.seeds else "")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Escape text that may contain Markdown."""
    return "".join(f"\\{sign}" if sign in "|*_<`[\\" else sign for sign in text)
