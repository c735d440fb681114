"""Contact sheets: which samples are shown, wrapped text, nothing over anything else, what is in the file."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from evaluation.contact_sheet import (
    STYLES,
    Line,
    Part,
    Sample,
    Shown,
    contact_sheet,
    draw_contact_sheet,
    spread,
    wrapped,
)

LONG = "a small chequered azure block is below a banded purple cross and a dotted amber block that costs $5 to $6 "


def plain(value, side=64):
    return np.full((side, side, 3), value, np.uint8)


def cards(count):
    lines = [Line("wrong", "wrong"), Line(LONG, "strong"), Line(f"its own, place 3: {LONG * 3}", "faint")]
    return [Sample([Shown(plain(40 * i % 200))], lines) for i in range(count)]


def rows(count):
    images = [Shown(plain(200), "place 1"), Shown(plain(90), "place 2, its own", "right"), *[Shown(plain(9), "x")] * 3]
    return [Sample(images, [Line(LONG * 2, "strong"), Line("wrong, its own is at place 2", "wrong")])] * count


@pytest.mark.parametrize("n", [0, 1, 5, 12, 13, 20, 100, 5000])
def test_samples_are_spread(n):
    chosen = spread(n, 12)
    assert len(chosen) == len(set(chosen)) == min(n, 12)
    assert chosen == sorted(chosen) and chosen == spread(n, 12)
    for i, number in enumerate(chosen):  # one of each twelfth
        assert n * i // len(chosen) <= number < n * (i + 1) // len(chosen)


def test_repeated_kinds_are_all_shown():
    assert {number % 4 for number in spread(480, 12)} == {0, 1, 2, 3}  # 480 / 12 is a multiple of 4


def test_wrapping():
    style = STYLES["plain"]
    assert wrapped("two words", 200, style) == ["two words"]
    assert wrapped("  \n ", 200, style) == []
    lines = wrapped(LONG, 120, style)
    assert len(lines) > 2 and " ".join(lines).split() == LONG.split()
    cut = wrapped(LONG * 9, 120, style, most=4)
    assert len(cut) == 4 and cut[-1].endswith(" …") and cut[:3] == wrapped(LONG * 9, 120, style, most=99)[:3]
    endless = wrapped("n01440764_" * 20, 120, style, most=99)
    assert len(endless) > 2 and "".join(endless) == "n01440764_" * 20


def test_nothing_lies_over_anything_else():
    """Extents as the renderer has them, of every text, image and frame."""
    figure = contact_sheet("xvlm-mini retrieval, dense", [Part("images " * 40, cards(5)), Part("texts", rows(2))])
    renderer = FigureCanvasAgg(figure).get_renderer()
    axes = figure.axes[0]
    boxes = [artist.get_window_extent(renderer) for artist in (*axes.texts, *axes.images)]
    assert len(axes.images) == 5 + 2 * 5 and len(axes.texts) > 60
    for box in (*boxes, *(frame.get_window_extent(renderer) for frame in axes.patches)):
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width and 0 <= box.y0 < box.y1 <= figure.bbox.height
    for one, two in itertools.combinations(boxes, 2):
        across = min(one.x1, two.x1) - max(one.x0, two.x0)
        down = min(one.y1, two.y1) - max(one.y0, two.y0)
        assert across <= 0 or down <= 1, (one, two)  # tails of letters of two lines may meet within a pixel


def test_the_file(tmp_path):
    """Size, pixels of the images in their places, and signs that do not rest on colour."""
    path = tmp_path / "samples.png"
    sample = Sample([Shown(plain((200, 30, 90)))], [Line("right", "right")])
    draw_contact_sheet("title", [Part("heading", [sample])], path)
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width == 1920
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    inside = (abs(pixels - (200, 30, 90)).sum(axis=2) < 6).nonzero()
    assert len(inside[0]) == pytest.approx(256 * 256, rel=0.02)  # four pixels for one of the 64 x 64
    assert inside[1].min() == pytest.approx(40, abs=1)  # the margin of 20 points
    assert (pixels[:, :40] == 255).all() and (pixels[-30:] == 255).all()
    blue = (abs(pixels - (0, 0x5B, 0x96)).sum(axis=2) < 60).sum()
    assert blue > 50  # "✓ right"
    more = tmp_path / "more.png"
    draw_contact_sheet("title", [Part("heading", [sample] * 4)], more)  # the fourth in a second line
    with Image.open(more) as picture:
        assert picture.height - len(pixels) == pytest.approx(2 * (128 + 16), abs=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["more.png", "samples.png"]


def test_the_same_twice(tmp_path):
    for name in ("one", "two"):
        draw_contact_sheet("title", [Part("heading", rows(1))], tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_signs_and_words():
    figure = contact_sheet(
        "t", [Part("h", [Sample([Shown(plain(0))], [Line(w, w) for w in ("right", "partly", "wrong")])])]
    )
    assert [text.get_text() for text in figure.axes[0].texts][2:] == ["✓ right", "◐ partly", "✗ wrong"]


@pytest.mark.parametrize(("height", "width"), [(40, 80), (80, 40), (1, 1)])
def test_images_keep_their_shape(height, width):
    figure = contact_sheet("t", [Part("h", [Sample([Shown(np.zeros((height, width, 3), np.uint8))], [])])])
    left, right, bottom, top = figure.axes[0].images[0].get_extent()
    assert (right - left) / (bottom - top) == pytest.approx(width / height)
    assert max(right - left, bottom - top) == pytest.approx(128)
