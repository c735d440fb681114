"""Drawings for a page, as SVG within it: bars, a chart of all layers, heat maps, keys. Colours are the page's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

KINDS = 5  # colours of modalities on the page


def colour(number: int) -> str:
    """Class of a modality's colour."""
    return f"m{number % KINDS}"


def bar(share: float, number: int = 0, mark: float | None = None) -> str:
    """A bar filled up to `share`, with a stroke at `mark`."""
    return stacked([(share, colour(number))], mark)


def stacked(parts: Sequence[tuple[float, str]], mark: float | None = None) -> str:
    """Shares of a whole beside each other, each with the classes of its colour."""
    drawn, x = ['<rect class="track" width="200" height="12"/>'], 0.0
    for share, kind in parts:
        drawn.append(f'<rect class="{kind}" x="{x:.2f}" width="{200 * share:.2f}" height="12"/>')
        x += 200 * share
    if mark is not None:
        drawn.append(f'<rect class="mark" x="{min(197.5, 200 * mark):.2f}" width="2.5" height="12"/>')
    return f'<svg class="bar" viewBox="0 0 200 12" preserveAspectRatio="none" aria-hidden="true">{"".join(drawn)}</svg>'


def keys(names: Sequence[tuple[str, str]]) -> str:
    """What the colours mean: (classes, name)."""
    made = (
        f'<span class="key"><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="{kind}" width="10" height="10" '
        f'rx="2"/></svg>{escape(name)}</span>'
        for kind, name in names
    )
    return f"<p>{''.join(made)}</p>"


def layer_chart(sparsities: Mapping[str, float], numbers: Mapping[str, int], overall: float) -> str:
    """A column a layer, in the model's order, as high as the share pruned; a dotted line at the whole mask's."""
    left, width, height, top = 44, 916, 170, 8
    step = width / max(1, len(sparsities))
    drawn = []
    for share in (0, 0.5, 1):
        y = top + height * (1 - share)
        drawn.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y}" y2="{y}"/>')
        drawn.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{100 * share:.0f}%</text>')
    for position, (name, share) in enumerate(sparsities.items()):
        x, y = left + position * step, top + height * (1 - share)
        drawn.append(
            f'<rect class="{colour(numbers[name])}" x="{x + 0.08 * step:.2f}" y="{y:.2f}" width="{0.84 * step:.2f}" '
            f'height="{height * share:.2f}"><title>{escape(name)}: {100 * share:.2f} %</title></rect>'
        )
    y = top + height * (1 - overall)
    drawn.append(
        f'<line class="asked" stroke-dasharray="3 4" x1="{left}" x2="{left + width}" y1="{y:.2f}" y2="{y:.2f}"/>'
    )
    drawn.append(f'<text x="{left}" y="{top + height + 18}">layers, in the order of the model</text>')
    return (
        f'<div class="wide chart"><svg viewBox="0 0 960 {top + height + 24}" role="img" '
        f'aria-label="share of weights pruned in every layer">{"".join(drawn)}</svg></div>'
    )


def heat_map(matrix: Sequence[Sequence[float]], labels: Sequence[str], title: str) -> str:
    """IoU of all pairs in percent, [k, k]; below the diagonal, smaller and unfilled, what chance would give."""
    cell_width, cell = 50, 34
    left = 14 + 6.6 * max(len(f"{k} {label}") for k, label in enumerate(labels, 1))
    drawn = []
    for i, values in enumerate(matrix):
        y = 24 + i * cell
        drawn.append(
            f'<text class="off" x="{left - 8:.1f}" y="{y + 21}" text-anchor="end">{i + 1} {escape(labels[i])}</text>'
        )
        drawn.append(f'<text x="{left + (i + 0.5) * cell_width:.1f}" y="16" text-anchor="middle">{i + 1}</text>')
        for j, value in enumerate(values):
            x, above = left + j * cell_width, j > i
            box = f'x="{x + 1:.1f}" y="{y + 1}" width="{cell_width - 2}" height="{cell - 2}" rx="3"'
            words = f"{labels[min(i, j)]} and {labels[max(i, j)]}: {100 * value:.2f} %{'' if above else ' by chance'}"
            if above:
                fill = f'<rect class="heat" fill-opacity="{max(0.04, value):.3f}" {box}>'
                drawn.append(f"{fill}<title>{escape(words)}</title></rect>")
            shown = "–" if i == j else f"{100 * value:.1f}"
            kind = ("on" if value > 0.75 else "off") if above else "chance"
            drawn.append(
                f'<text class="{kind}" x="{x + cell_width / 2:.1f}" y="{y + 21}" text-anchor="middle">{shown}</text>'
            )
    width, height = left + cell_width * len(labels) + 4, 30 + cell * len(labels)
    return (
        f'<figure><figcaption class="soft">{escape(title)}</figcaption>'
        f'<svg width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(drawn)}</svg></figure>'
    )
