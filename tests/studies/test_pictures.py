"""Pictures: labels that do not touch, colours that are told apart, SVG that takes the page's colours."""

import itertools
import re

import numpy as np
import pytest

from inspection.page import COLOURS
from pruners import PRUNERS
from sparsity.progressive_config import CHOICES
from studies.curves import height_for, label_ends, positions, spread
from studies.looks import HUES, LIGHT, SHAPES, looks
from studies.pictures import MARGINS, WIDTH, figure, inline, save

# Machado, Oliveira and Fernandes 2009, severity 1: what people see who lack red, green or blue cones (linear RGB).
BLIND = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


def linear(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIE L*a*b* of linear sRGB."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.clip(np.array(matrix) @ rgb, 1e-4, None) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one, other):
    """Of the web's accessibility guidelines."""
    light, dark = sorted((float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("shade", [0, 1], ids=["light", "dark"])
def test_hues_are_told_apart_and_stand_out(shade):
    colours, hues = {name: shades[shade] for name, shades in (COLOURS | HUES).items()}, list(HUES)
    for hue in hues:
        assert contrast(colours[hue], colours["page"]) >= 3, f"{hue} is too pale"
    for kind, matrix in BLIND.items():
        seen = {hue: lab(np.array(matrix) @ linear(colours[hue])) for hue in hues}
        for one, other in itertools.combinations(hues, 2):
            assert np.linalg.norm(seen[one] - seen[other]) > 13, f"{one} and {other}: {kind}"


def test_a_pruner_has_the_same_style_everywhere():
    everyone = looks([*PRUNERS, *CHOICES], {})
    assert len(set(everyone.values())) == len(PRUNERS) + len(CHOICES)
    assert {everyone[name].hue for name in CHOICES}.isdisjoint(everyone[name].hue for name in PRUNERS)
    assert looks(["platon", "platon + ID"], {"platon + ID": "platon"})["platon + ID"].hue == everyone["taylor"].hue
    assert everyone["itersnip"].hue == everyone["snip"].hue != everyone["omp"].hue
    for names in (["omp", "lamp"], ["multiflow", "omp"], ["chita++"]):
        assert looks(names, {}) == {name: everyone[name] for name in names}
    names = ["multiflow", *(f"multiflow-{number}" for number in range(9))]
    many = looks(names, dict.fromkeys(names, "multiflow")).values()
    assert (
        len({(look.marker, str(look.dashes)) for look in many})
        == len({(look.marker, look.dashing) for look in many})
        == 10
    )
    assert {look.dashing for look in many} == set(range(len(SHAPES))), "the page has a chip for each"
    variants = looks(["multiflow", "multiflow-global", "new"], {"multiflow-global": "multiflow"})
    assert variants["multiflow-global"].hue == "blue"
    assert len(set(variants.values())) == 3


def test_labels_keep_their_distance_and_their_order():
    draw = np.random.default_rng(2)
    for _ in range(200):
        values = draw.normal(50, draw.choice([0.1, 5, 30]), draw.integers(1, 12)).clip(0, 100).tolist()
        places = spread(values, 5, 0, 100)
        order = np.argsort(values, kind="stable")
        gaps = np.diff(np.array(places)[order])
        assert (gaps >= 5 - 1e-6).all()
        assert min(places) >= -1e-6
        assert max(places) <= 100 + 1e-6


def test_labels_that_do_not_touch_stay_where_they_are():
    assert spread([10, 50, 90], 5, 0, 100) == [10, 50, 90]
    assert spread([50, 50], 6, 0, 100) == [47, 53]


@pytest.mark.parametrize("count", [5, 14, 30])
def test_labels_of_many_curves_stay_beside_the_axes(count):
    with figure(1, 1, WIDTH, height_for(count), "labels") as (made, axes):
        made.subplots_adjust(**MARGINS)
        label_ends(axes[0, 0], [(1.0, 0.5 + number / 1000, f"row {number}", "black") for number in range(count)])
        low, high = axes[0, 0].get_ylim()
        assert len(axes[0, 0].texts) == count
        assert all(low <= text.get_position()[1] <= high for text in axes[0, 0].texts)


def test_sparsities_are_drawn_to_scale():
    assert positions([63, 75, 90]) == [63, 75, 90]
    assert positions([50, 89, 90]) == [0, 1, 2]
    assert positions([75]) == [75]


def test_an_inline_picture_has_no_own_colours():
    def draw(axis):
        axis.plot([0, 1], [0, 1], color=LIGHT["blue"], clip_on=False)
        axis.text(0, 0, "<name> & more")
        axis.set_title("title")

    svg = inline(draw, "p", 'a "picture"')
    assert svg == inline(draw, "p", 'a "picture"'), "the same every time"
    assert "var(--blue)" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert not re.search(r"http|<style|<metadata|DejaVu|xlink|<!", svg)
    assert all(name.startswith("p-") for name in re.findall(r'(?: id="|#)([^")]+)', svg))
    assert "&lt;name&gt; &amp; more" in svg


def test_pictures_are_files(tmp_path):
    from PIL import Image

    save([lambda axis: axis.plot([0, 1])] * 3, tmp_path / "three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three.png", "three.svg"]
    with Image.open(tmp_path / "three.png") as image:
        assert image.width > 800
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
