"""A contact sheet: scenes of a split, enlarged, each with one of its captions or questions below it."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data.miniworld.captions import draw_captions
from data.miniworld.paint import paint
from data.miniworld.parts import SPLITS, scene_for, text_draws
from data.miniworld.scene import SIDE
from storage.atomic import atomic_path

COLUMNS, GAP, LINE, LINES = 5, 8, 12, 4


def write_sheet(path: Path, split: str, count: int, seed: int, zoom: int = 4) -> None:
    """Draw the first `count` scenes of a split, `zoom` times as large, and save them as one PNG."""
    width, height = SIDE * zoom + GAP, SIDE * zoom + GAP + LINE * LINES
    rows = -(-count // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width + GAP, rows * height + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for index in range(count):
        scene = scene_for(split, index, seed)
        left, top = GAP + index % COLUMNS * width, GAP + index // COLUMNS * height
        enlarged = np.kron(paint(scene), np.ones((zoom, zoom, 1), dtype=np.uint8))
        sheet.paste(Image.fromarray(enlarged), (left, top))
        caption = draw_captions(text_draws(split, index, seed), scene, SPLITS[split].phrasing, 1)[0].text
        lines = textwrap.wrap(caption, SIDE * zoom // 6)[:LINES]
        pen.multiline_text((left, top + SIDE * zoom + 2), "\n".join(lines), fill="black", spacing=1)
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")
