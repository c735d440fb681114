"""The page of a table of errors: what is drawn, what a plan keeps, and rank correlation by hand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from console.errors import InputError
from models import load_model
from models.parts import all_sets
from shrinking import CRITERIA
from shrinking.choosing import Limits, by_shares
from shrinking.errors import Errors, restricted
from shrinking.heat_maps import agreement, by_unit, panels, short, write_page
from shrinking.weights import random_values


@pytest.fixture(scope="module")
def model():
    return load_model("xvlm-mini")


@pytest.fixture(scope="module")
def table(model):
    values = restricted(model, CRITERIA["magnitude"](model, 0), ["heads", "neurons", "layers"], "both")
    return Errors.of(model, values, 64, {"model": "xvlm-mini", "criterion": "magnitude", "seed": 0, "task": None})


def test_every_part_is_drawn(model, table):
    found = panels(model, table, {})
    drawn = sum(int((~np.isnan(panel.errors)).sum()) for panel in found)
    assert drawn == sum(len(errors) for errors in table.errors.values())
    towers = {panel.tower for panel in found if panel.kind == "layers"}
    assert towers == {"vision", "text", "fusion"}
    assert all(panel.stays.all() for panel in found)


def test_what_a_plan_removes_is_crossed(model, table):
    kept = by_shares(model, table, {"heads": 0.5, "layers": 0.5}, Limits(("vision",)))
    found = {(panel.tower, panel.kind): panel for panel in panels(model, table, kept)}
    heads = next(one.count for one in all_sets(model) if one.kind == "heads")
    assert int((~found["vision", "heads"].stays).sum()) == len(found["vision", "heads"].rows) * heads // 2
    assert int((~found["vision", "layers"].stays).sum()) == 2
    assert found["text", "heads"].stays.all()


def test_agreement(model, table):
    """By unit: with itself, with the opposite order, and with random numbers."""
    opposite = Errors({name: -errors for name, errors in table.errors.items()}, table.groups, table.about)
    torch.manual_seed(0)
    random = Errors({name: torch.rand_like(e) for name, e in table.errors.items()}, table.groups, table.about)
    rows = {(tower, kind): values for tower, kind, values in agreement(model, [table, table, opposite, random])}
    same, other, chance = rows["vision", "neurons"]
    assert (same, other) == (pytest.approx(1), pytest.approx(-1))
    names = [
        one.name for one in all_sets(model) if one.kind == "neurons" and model.modality_of(one.consumer) == "vision"
    ]
    first, drawn = (np.concatenate([by_unit(of, name) for name in names]) for of in (table, random))
    # Pearson's correlation of ranks, ties at their mean.
    ranks = [np.array([(v < x).sum() + ((v == x).sum() - 1) / 2 for x in v]) for v in (first, drawn)]
    assert chance == pytest.approx(np.corrcoef(ranks[0], ranks[1])[0, 1])


def test_tables_of_other_parts(model, table):
    """Where two tables share nothing, or all errors are equal, there is no correlation to give."""
    heads = Errors({n: e for n, e in table.errors.items() if "attn" in n}, table.groups, table.about)
    heads = Errors(heads.errors, {name: table.groups[name] for name in heads.errors}, table.about)
    equal = Errors({name: torch.zeros_like(e) for name, e in table.errors.items()}, table.groups, table.about)
    rows = {(tower, kind): values for tower, kind, values in agreement(model, [table, heads, equal])}
    assert rows["vision", "heads"][0] == pytest.approx(1)
    assert np.isnan([*rows["vision", "neurons"], rows["vision", "heads"][1]]).all()
    with pytest.raises(InputError, match="nothing to draw"):
        write_page(model, {"a": Errors({}, {}, table.about)}, None, Path("page.html"))


def test_labels():
    """The second of two towers in one row of layers has its own numbers; names lose what they share."""
    model = load_model("xvlm-mini")
    table = Errors.of(model, random_values(model, 0), 64, {"model": "xvlm-mini", "criterion": "random", "seed": 0})
    found = {(panel.tower, panel.kind): panel for panel in panels(model, table, {})}
    assert found["text", "layers"].columns == [0, 1]
    assert found["fusion", "layers"].columns == [2, 3]
    assert set(short(found["fusion", "heads"].rows)) == {
        f"{number}.{name}" for number in (2, 3) for name in ("attention", "crossattention")
    }
    assert short(["a.0.b", "a.1.b"]) == ["0", "1"]
    assert short(["a.b"]) == ["a.b"]


def test_the_page(model, table, tmp_path):
    write_page(model, {"a": table, "b": table}, None, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for words in ("Errors of a", "<svg", "Spearman", "vision: heads", "text: groups of neurons"):
        assert words in page
    assert not re.search(r"(src|href)=.http", page), "nothing outside of the file"
