"""The layers of a mask as a tree: modality, block, layer; and such a tree with bars on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from inspection.names import block_and_rest

DEPTHS = {"modality": 1, "block": 2, "layer": 3}
"""How far a tree is shown: the kinds of its nodes, from the root."""

STYLES = ("blue", "dark_orange3", "green4", "magenta", "gold3")
"""One a modality, as in the pictures."""

EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass
class Node:
    """A modality, a block or a layer, with the layers that belong to it. number: of the modality."""

    label: str
    number: int
    layers: list[str] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """What is shown of a node: a bar, perhaps with a mark on it, both in [0, 1], and words beside it."""

    share: float
    words: Sequence[str]  # as many for every node, right-aligned in columns
    mark: float | None = None
    warning: str = ""


def layer_tree(modalities: Mapping[str, Sequence[str]]) -> list[Node]:
    """Modalities with their blocks with their layers; a block of one layer is that layer itself."""
    roots = []
    for number, (modality, names) in enumerate(modalities.items()):
        root = Node(modality, number, list(names))
        blocks: dict[str, Node] = {}
        for name in names:
            label, rest = block_and_rest(name)
            block = blocks.setdefault(label, Node(label, number))
            block.layers.append(name)
            block.children.append(Node(rest, number, [name]))
        for block in blocks.values():
            if len(block.children) == 1:
                block.label, block.children = f"{block.label}.{block.children[0].label}".lstrip("."), []
            root.children += [block] if block.label else block.children  # layers of the model itself have no block
        roots.append(root)
    return roots


def print_tree(screen: Console, roots: Sequence[Node], look: Callable[[Node], Row], depth: int) -> None:
    """One line a node, as deep as asked; bars take what the screen's width leaves."""
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
