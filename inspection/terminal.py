"""The terminal output of masks.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from console.words import counted, pct
from inspection.comparison import Comparison
from inspection.layers import Counts, Node, layer_tree, total
from inspection.reading import MaskFile
from inspection.stability import Stability

DEPTHS = {"modality": 1, "block": 2, "layer": 3}
"""--depth -> number of levels of the tree that are printed."""

STYLES = ("blue", "dark_orange3", "green4", "magenta", "gold3")
"""A colour per modality, as in the pictures."""

EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True)
class Row:
    """The line of a node: a bar of length `share` in [0, 1] with an optional `mark` on it, and words next to it."""

    share: float
    words: Sequence[str]  # as many for every node, right-aligned in columns
    mark: float | None = None
    warning: str = ""


def show_inspection(
    screen: Console, file: MaskFile, counts: dict[str, Counts], warnings: Sequence[str], depth: int
) -> None:
    """Print totals, the tree of layers with a bar of the share pruned, and warnings."""
    everything = total(counts.values())
    screen.print(f"[bold]{escape(str(file.path))}[/]" + (f": {escape(file.origin)}" if file.origin else ""))
    screen.print(
        f"{pct(everything.sparsity, 3)} pruned: {everything.kept:,} of {everything.size:,} weights kept in "
        f"{counted(len(counts), 'layer')}; dead: {everything.dead_outputs:,} of {everything.outputs:,} outputs, "
        f"{everything.dead_inputs:,} of {everything.inputs:,} inputs"
        + ("; updated values of the kept weights" if file.mask.has_values else "")
    )

    def look(node: Node) -> Row:
        found = total(counts[name] for name in node.layers)
        dead = [f"{n:,} {what}" for n, what in ((found.dead_outputs, "out"), (found.dead_inputs, "in")) if n]
        words = (pct(found.sparsity, 2), f"{found.kept:,} of {found.size:,} kept")
        return Row(found.sparsity, words, warning=f"dead: {', '.join(dead)}" if dead else "")

    print_tree(screen, layer_tree(file.mask.layers_by_modality()), look, depth)
    for warning in warnings:
        screen.print(f"[yellow]warning:[/] {escape(warning)}")


def show_comparison(screen: Console, comparison: Comparison, depth: int) -> None:
    """Print a sentence (two masks) or a matrix (more), and the tree of layers with IoUs, means over all pairs."""
    show_files(screen, comparison.files)
    if len(comparison.pairs) == 1:
        found = comparison.overlap((0, 1))
        screen.print(
            f"IoU {pct(found.iou)}, by chance {pct(found.chance)}; {found.both:,} of {found.size:,} weights kept by "
            f"both, {pct(found.overlap)} of the sparser mask; equal bits: {pct(found.agreement)}"
        )
    else:
        show_matrix(screen, comparison, "IoU of the weights kept, in percent; below the diagonal: by chance")
    show_iou_tree(screen, comparison, depth)


def show_files(screen: Console, files: Sequence[MaskFile]) -> None:
    """Print a line per mask."""
    width = max(len(file.label) for file in files)
    for number, file in enumerate(files, 1):
        text = f"{number}  [bold]{escape(file.label):<{width}}[/]  {pct(file.mask.sparsity(), 3)} pruned"
        screen.print(text + f"  {escape(file.origin or str(file.path))}")


def show_matrix(screen: Console, comparison: Comparison, title: str) -> None:
    """Print the matrix of IoUs, shaded."""
    table = Table(title=title, title_justify="left", show_lines=False)
    table.add_column("")
    for number in range(1, len(comparison.files) + 1):
        table.add_column(str(number), justify="right")
    for i, row in enumerate(comparison.matrix()):
        cells = [_shaded(value, j - i) for j, value in enumerate(row)]
        table.add_row(escape(f"{i + 1} {comparison.files[i].label}"), *cells)
    screen.print(table)


def _shaded(value: float, side: int) -> Text:
    """A cell above (side > 0), on or below the diagonal; darker blue is a larger IoU."""
    if side <= 0:
        return Text("–" if side == 0 else f"{100 * value:.1f}", style="dim")
    shade = [round(start + value * (end - start)) for start, end in ((226, 20), (236, 70), (248, 150))]
    return Text(
        f"{100 * value:.1f}", style=f"{'white' if value > 0.5 else 'black'} on rgb({','.join(map(str, shade))})"
    )


def show_iou_tree(screen: Console, comparison: Comparison, depth: int) -> None:
    """Print bars of IoU by modality, block and layer, with a stroke at the IoU by chance."""
    many = len(comparison.pairs) > 1
    screen.print(f"IoU{', mean over the pairs' if many else ''} (┃ by chance)")

    def look(node: Node) -> Row:
        iou, chance = comparison.iou(node.layers), comparison.chance(node.layers)
        spread = (f"{100 * iou.low:.1f} to {100 * iou.high:.1f}",) if many else ()
        return Row(iou.mean, (pct(iou.mean), *spread, f"by chance {pct(chance)}"), mark=chance)

    print_tree(screen, layer_tree(comparison.modalities), look, depth)


def _percents(title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    return table


def show_stability(screen: Console, stability: Stability, depth: int) -> None:
    """Print IoU over all pairs, and the share of weights that all draws agree on, by modality."""
    compared = stability.comparison
    show_files(screen, compared.files)
    k = len(compared.files)
    places = [("all", compared.layers, stability.overall)]
    if len(stability.votes) > 1:
        places += [(modality, names, stability.votes[modality]) for modality, names in compared.modalities.items()]
    pairs = _percents(f"IoU over {counted(len(compared.pairs), 'pair')}, in percent")
    votes = _percents("weights by the draws that keep them, in percent")
    for column in ("mean", "spread", "least", "most", "by chance"):
        pairs.add_column(column, justify="right")
    for column in (f"all {k}", "some", "none", "all among any", "by chance"):
        votes.add_column(column, justify="right")
    for place, names, vote in places:
        iou = compared.iou(names)
        shares = (iou.mean, iou.sd, iou.low, iou.high, compared.chance(names))
        pairs.add_row(escape(place), *(f"{100 * share:.2f}" for share in shares))
        shares = (vote.by_all, vote.by_some, vote.by_none, vote.core, vote.core_by_chance)
        votes.add_row(escape(place), *(f"{100 * share:.2f}" for share in shares))
    screen.print(pairs)
    screen.print(votes)
    screen.print("spread: standard deviation over the pairs; by chance: random masks as dense in every layer")
    if k > 2:
        show_matrix(screen, compared, "IoU of all pairs, in percent; below the diagonal: by chance")
    if stability.all_same:
        screen.print("all masks are equal, weight by weight: this pruning does not depend on the draw")
    elif depth > 1:
        show_iou_tree(screen, compared, depth)


def print_tree(screen: Console, roots: Sequence[Node], look: Callable[[Node], Row], depth: int) -> None:
    """Print a line per node, down to `depth`; bars fill the rest of the screen's width."""
    lines = [line for root in roots for line in _lines(root, depth)]
    rows = [look(node) for _, node in lines]
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(*(row.words for row in rows), strict=True)]
    names = max(len(guide) + len(node.label) for guide, node in lines)
    bar = min(32, max(8, screen.width - names - sum(widths) - 2 * len(widths) - 4))
    for (guide, node), row in zip(lines, rows, strict=True):
        text = Text(guide, style="dim")
        text.append(f"{node.label:<{names - len(guide)}}  ", style="bold" if not guide else "default")
        text.append_text(bar_text(row.share, bar, STYLES[node.number % len(STYLES)], row.mark))
        for word, width in zip(row.words, widths, strict=True):
            text.append(f"  {word:>{width}}")
        if row.warning:
            text.append(f"  {row.warning}", style="yellow")
        screen.print(text)


def bar_text(share: float, width: int, style: str, mark: float | None = None) -> Text:
    """A bar `width` characters long, filled up to `share`, with a stroke at `mark`."""
    eighths = round(min(1.0, max(0.0, share)) * width * 8)
    full, part = divmod(eighths, 8)
    cells = [("█", style)] * full + ([(EIGHTHS[part], style)] if part else [])
    cells += [("·", "dim")] * (width - len(cells))
    if mark is not None:
        cells[min(width - 1, int(mark * width))] = ("┃", "bold")
    return Text.assemble(*cells)


def _lines(node: Node, depth: int, guide: str = "", rest: str = "") -> list[tuple[str, Node]]:
    lines = [(guide, node)]
    if depth > 1:
        for child in node.children:
            last = child is node.children[-1]
            lines += _lines(child, depth - 1, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))
    return lines
