"""Contact sheets: some test images with a model's predictions, as one picture next to a run's results.

A task's `samples` are the input, as plain records. Right and wrong are marked by a sign and a word, not only by
colour.
    python captioning.py --model xvlm-mini --dense --debug    # writes samples.png to its output folder
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from storage.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

# Lengths are points. At two pixels per point, an image of the mini world (64 pixels) is enlarged by exactly 4 or 3.
DPI = 144
WIDTH, MARGIN, GAP = 960.0, 20.0, 16.0
COLUMNS = 3
COLUMN = (WIDTH - 2 * MARGIN - (COLUMNS - 1) * GAP) / COLUMNS
ALONE, IN_ROW = 128.0, 96.0  # side of an image: next to its lines, or one of several
ROOM = 5  # images that fit into a row
FONT = "DejaVu Sans"  # comes with matplotlib, and has the signs
MOST_LINES = 7  # of one text; a longer one ends in dots


@dataclass(frozen=True)
class Style:
    """The look of a line. sign: precedes its text."""

    colour: str = "#1a1a1a"
    size: float = 8.0
    weight: str = "normal"
    sign: str = ""

    @property
    def font(self) -> FontProperties:
        """For matplotlib."""
        from matplotlib.font_manager import FontProperties

        return FontProperties(family=FONT, size=self.size, weight=self.weight)


RIGHT, PARTLY, WRONG = "#005b96", "#7a5195", "#b8430b"  # blue, violet, vermilion: distinguishable for the colour-blind
STYLES = {
    "plain": Style(),
    "strong": Style(weight="bold"),
    "faint": Style("#5f5f5f", 7.5),
    "right": Style(RIGHT, weight="bold", sign="✓ "),
    "partly": Style(PARTLY, weight="bold", sign="◐ "),
    "wrong": Style(WRONG, weight="bold", sign="✗ "),
    "title": Style(size=13.0, weight="bold"),
    "heading": Style(size=10.0),
}


@dataclass(frozen=True)
class Line:
    """A text, wrapped if it is too wide. style: key of `STYLES`."""

    text: str
    style: str = "plain"


@dataclass(frozen=True)
class Shown:
    """An image [H, W, 3] uint8. Among several: label, the text below it; frame, "right", "wrong" or none."""

    image: np.ndarray
    label: str = ""
    frame: str = ""


@dataclass(frozen=True)
class Sample:
    """One image with lines to its right, or lines with several images (at most 5) to their right."""

    images: Sequence[Shown]
    lines: Sequence[Line]

    def __post_init__(self) -> None:
        assert 1 <= len(self.images) <= ROOM


@dataclass(frozen=True)
class Part:
    """Samples of one kind below a heading."""

    heading: str
    samples: Sequence[Sample]


def spread(n: int, k: int) -> list[int]:
    """k of the numbers below n (at most n), rising, evenly spread and always the same.

    They are one from each of k stretches, at positions by the golden ratio: equal steps would always select the same
    kind of question if a file repeats its kinds.
    """
    k = min(n, k)
    stretches = [(n * i // k, n * (i + 1) // k) for i in range(k)]
    golden = (math.sqrt(5) - 1) / 2
    return [first + int((end - first) * ((i + 1) * golden % 1)) for i, (first, end) in enumerate(stretches)]


def draw_contact_sheet(title: str, parts: Sequence[Part], path: Path) -> None:
    """Write the sheet (PNG), atomically."""
    figure = contact_sheet(title, parts)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def contact_sheet(title: str, parts: Sequence[Part]) -> Figure:
    """The sheet as a figure, whose height fits its content."""
    page, inner = _Page(), WIDTH - 2 * MARGIN
    y = page.write(MARGIN, MARGIN, [Line(title, "title")], inner)
    for part in parts:
        y = page.write(MARGIN, y + GAP, [Line(part.heading, "heading")], inner) + GAP / 2
        alone = all(len(sample.images) == 1 for sample in part.samples)
        columns, width = (COLUMNS, COLUMN) if alone else (1, inner)
        for first in range(0, len(part.samples), columns):
            line = enumerate(part.samples[first : first + columns])
            y = max(page.place(sample, MARGIN + i * (width + GAP), y, width) for i, sample in line) + GAP
    return page.cut(math.ceil(y - GAP + MARGIN))


def wrapped(text: str, width: float, style: Style, most: int = MOST_LINES) -> list[str]:
    """The text in at most `most` lines no wider than `width`; too wide words are cut, and the rest becomes dots."""
    lines = [""]
    for word in re.findall(r"[^ \t\r\n]+", text):  # a non-breaking space stays inside its word
        longer = f"{lines[-1]} {word}".lstrip()
        if _width(longer, style) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for piece in [word] if _width(word, style) <= width else word:
            if lines[-1] and _width(lines[-1] + piece, style) > width:
                lines.append("")
            lines[-1] += piece
    lines = [line for line in lines if line]
    if len(lines) > most:
        last = lines[most - 1]
        while last and _width(f"{last} …", style) > width:
            last = last[:-1].rstrip()
        lines[most - 1 :] = [f"{last} …"]
    return lines


class _Page:
    """A figure with coordinates in points from the top left corner; its height is set by `cut` in the end."""

    def __init__(self) -> None:
        from matplotlib.figure import Figure  # without pyplot: no window, no state shared with other drawings

        self.figure = Figure(dpi=DPI, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()

    def write(self, x: float, y: float, lines: Sequence[Line], width: float) -> float:
        """Write lines from y down; returns where they end."""
        for line in lines:
            style = STYLES[line.style]
            for text in wrapped(style.sign + line.text, width, style):
                y += 1.3 * style.size
                # A caption may contain $ signs, which must not become formulas.
                self.axes.text(x, y - 0.3 * style.size, text, color=style.colour, font=style.font, parse_math=False)
            y += 0.3 * style.size
        return y

    def place(self, sample: Sample, x: float, y: float, width: float) -> float:
        """Draw a sample with its top left corner at (x, y); returns where it ends."""
        if len(sample.images) == 1:
            self.paint(x, y, ALONE, sample.images[0])
            beside = x + ALONE + GAP / 2
            return max(y + ALONE, self.write(beside, y - 2, sample.lines, x + width - beside))
        left = x + COLUMN + GAP  # aligned with the second column of single images
        bottom = self.write(x, y - 2, sample.lines, left - GAP - x)
        for i, shown in enumerate(sample.images):
            at = left + i * (IN_ROW + GAP)
            self.paint(at, y, IN_ROW, shown)
            label = Line(shown.label, shown.frame or "faint")
            bottom = max(bottom, self.write(at, y + IN_ROW + 5, [label], IN_ROW + GAP / 2))
        return bottom

    def paint(self, x: float, y: float, side: float, shown: Shown) -> None:
        """Draw the image centred in a square, in its aspect ratio, with its frame around it."""
        from matplotlib.patches import Rectangle

        h, w, _ = shown.image.shape
        scale = side / max(h, w)
        left, top = x + (side - w * scale) / 2, y + (side - h * scale) / 2
        self.axes.imshow(shown.image, extent=(left, left + w * scale, top + h * scale, top))
        if shown.frame:
            line = {"edgecolor": STYLES[shown.frame].colour, "linestyle": "-" if shown.frame == "right" else "--"}
            self.axes.add_patch(Rectangle((x - 3, y - 3), side + 6, side + 6, fill=False, linewidth=3, **line))

    def cut(self, height: float) -> Figure:
        """The figure, cut to this height."""
        self.figure.set_size_inches(WIDTH / 72, height / 72)
        self.axes.set(xlim=(0, WIDTH), ylim=(height, 0), aspect="auto")
        return self.figure


@lru_cache(maxsize=10_000)
def _width(text: str, style: Style) -> float:
    """Width in points, with a margin of 2 % since drawn letters are aligned to pixels."""
    from matplotlib.textpath import TextToPath

    return 1.02 * TextToPath().get_text_width_height_descent(text, style.font, ismath=False)[0]
