"""Pages: well formed, standing alone, and showing the numbers, whatever the masks are called."""

import json
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from inspection.comparison import compare, draw_heat_map
from inspection.layers import count_layers, warnings
from inspection.page import comparison_page, inspection_page, stability_page
from inspection.records import comparison_record, inspection_record, stability_record
from inspection.stability import stability
from inspection.terminal import bar_text, show_comparison, show_inspection, show_stability
from tests.inspection.masks import files_of, mask_of

HOSTILE = ("<b>&\"'", "[red]", "plain")
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Balance(HTMLParser):
    """Every element that is opened is closed, in order; gathers the words."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> is given twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def draws(count):
    modalities = {"v.0.a": "vision", "v.0.b": "vision", "t": "text"}
    source = {"model": "<model>", "pruner": "omp", "seed": 1, "sparsity_asked": 0.5}
    rows = ([1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0])[:count]
    masks = [mask_of(modalities, source, v__0__a=[row], v__0__b=[[0, 0]], t=[row, row]) for row in rows]
    return files_of(*masks, names=HOSTILE)


def reports():
    file = draws(1)[0]
    counts = count_layers(file.mask)
    warned = warnings(file.mask, counts)
    two, three, stable = compare(draws(2)), compare(draws(3)), stability(draws(3))
    return {
        "inspection": (
            inspection_page(file, counts, warned),
            inspection_record(file, counts, warned),
            lambda screen: show_inspection(screen, file, counts, warned, 3),
        ),
        "two": (comparison_page(two), comparison_record(two), lambda screen: show_comparison(screen, two, 3)),
        "three": (comparison_page(three), comparison_record(three), lambda screen: show_comparison(screen, three, 3)),
        "stability": (stability_page(stable), stability_record(stable), lambda s: show_stability(s, stable, 3)),
    }


@pytest.mark.parametrize("kind", ["inspection", "two", "three", "stability"])
def test_page_is_well_formed_and_stands_alone(kind):
    text = reports()[kind][0]
    parser = Balance()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert not {"script", "link", "img", "iframe", "b>&"} & set(parser.tags)
    assert not re.search(r"https?:|//|@import|url\(|\bon\w+=|src=", text)
    assert "prefers-color-scheme: dark" in text
    assert HOSTILE[0] in " ".join(parser.words), "the name is shown as it is"
    for variable in set(re.findall(r"var\((--[\w-]+)\)", text)):
        assert len(re.findall(rf"{variable}:", text)) == 2, f"{variable} needs a light and a dark value"


def test_numbers_on_the_page():
    made = reports()
    assert "Warning: no weight is kept in 1 layer: v.0.b.weight." in made["inspection"][0]
    assert "57.143 %" in made["inspection"][0], "8 of 14 weights are pruned"
    assert "33.3 %" in made["two"][0], "IoU 1/3 in every layer that keeps anything"
    assert "64.29 %" in made["stability"][0], "exactly 2 of the 3 draws keep 9 of 14 weights"


@pytest.mark.parametrize("kind", ["inspection", "two", "three", "stability"])
@pytest.mark.parametrize("width", [40, 120])
def test_terminal_shows_names_and_bars(kind, width, capsys):
    screen = Console(width=width, soft_wrap=True)
    reports()[kind][2](screen)
    shown = capsys.readouterr().out
    assert "█" in shown
    assert "vision" in shown
    assert HOSTILE[0 if kind == "inspection" else 1] in shown, "names are no markup"


def test_records_are_json_with_the_counts():
    made = {kind: json.loads(json.dumps(report[1], allow_nan=False)) for kind, report in reports().items()}
    assert made["inspection"]["layers"]["v.0.a.weight"]["kept"] == 2
    assert made["inspection"]["modalities"]["text"]["dead_inputs"] == 2
    pair = made["two"]["pairs"][0]
    assert pair["layers"]["t.weight"]["kept_by_both"] == 2
    assert pair["overall"]["iou"] == pytest.approx(1 / 3)
    assert made["stability"]["overall"]["kept_by"] == [5, 0, 9, 0]


def test_bar_is_as_long_as_asked():
    for share in (0, 0.004, 0.5, 0.996, 1):
        assert len(bar_text(share, 10, "blue", mark=share)) == 10
    assert bar_text(0.5, 10, "blue").plain == "█████·····"
    assert bar_text(0.5, 10, "blue", mark=0.31).plain == "███┃█·····"


def test_heat_map_is_a_picture(tmp_path):
    from PIL import Image

    draw_heat_map(compare(draws(3)), tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as image:
        assert image.width > image.height > 150
