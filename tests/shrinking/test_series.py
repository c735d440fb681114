"""A smaller model for each share, from one table: which options go where, and what is there already."""

import json

import pytest

import shrink
from console.errors import InputError
from models import load_model
from models.small import read_plan
from shrinking.series import check_options, draws, parts_of, telling_options, words_of


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, [{"keep": 0.25}]),
        ({"keep_layers": 0.5}, [{"keep": 0.25, "keep_layers": 0.5}]),
        ({"of": "layers"}, [{"keep": 1.0, "keep_layers": 0.25}]),
        ({"of": "parameters"}, [{"parameters": 50.0}]),
        ({"of": "all", "first": "width"}, [{"keep": 0.25}, {"keep": 1.0, "keep_layers": 0.25}]),
        ({"rounds": 3}, [{"keep": 0.75}, {"keep": 2 / 3}, {"keep": 0.5}]),
        ({"keep_layers": 0.5, "first": "depth"}, [{"keep": 1.0, "keep_layers": 0.5}, {"keep": 0.25}]),
    ],
)
def test_what_is_planned_for_a_quarter(options, parts):
    for found, wanted in zip(parts_of(options, 0.25, lambda name: 200.0), parts, strict=True):
        assert found == pytest.approx(wanted)


def test_options_go_to_the_commands_that_know_them():
    options = {"criterion": "taylor", "tower": "both", "protect": ["blocks.0", "head"], "conv": True, "round": None}
    assert words_of("measure", options) == ["--criterion=taylor", "--tower=both", "--conv"]
    assert words_of("plan", options) == ["--tower=both", "--protect", "blocks.0", "head"]
    assert telling_options({"criterion": "mope", "scope": "layer", "devices": 2}) == {"scope": "layer"}
    assert [draws({"criterion": name}) for name in ("magnitude", "random", "taylor")] == [False, True, True]


@pytest.mark.parametrize("of", ["all", "layers"])
def test_layers_have_one_share(of):
    with pytest.raises(InputError, match="leave keep_layers out"):
        check_options({"of": of, "keep_layers": 0.9})


def test_options_of_a_plan_without_use():
    with pytest.raises(InputError, match="leave out --scope layer"):
        check_options({"of": "flops", "scope": "layer"})


def test_width_then_depth_of_a_mini(tmp_path):
    """The second table is of what is left; a command started again makes only what is missing."""
    options = ["criterion=magnitude", "samples=9", "keep_layers=0.5", "first=width", "repeats=1"]
    words = ["series", "-m", "dino-mini", "-o", str(tmp_path), *(w for one in options for w in ("--set", one))]
    shrink.series(shrink.parse_args([*words, "-s", "50"]))
    found = json.loads((tmp_path / "series.json").read_text())
    small = load_model(f"small:{tmp_path / '50'}")
    assert found["shares"]["50"]["parameters"][1] == sum(p.numel() for p in small.state_dict().values())
    kept = read_plan(tmp_path / "50" / "plan.json")["kept"]
    assert sum(stay["kind"] == "layers" for stay in kept.values()) == 1
    vision = found["shares"]["50"]["layers"]["vision"]
    assert sum(kept == 0 for kept, _ in vision.values()) == 3 * 6, "half of six layers of six matrices each"
    before = (tmp_path / "50" / "model.safetensors").stat().st_mtime_ns
    shrink.series(shrink.parse_args([*words, "-s", "50"]))
    assert (tmp_path / "50" / "model.safetensors").stat().st_mtime_ns == before
    for more, says in (
        (["--set", "keeps=1"], "unknown option 'keeps'"),
        (["--set", "repeats=0"], "repeats must be at least 1"),
        (["--set", "criterion=random"], "smaller models of another set"),
        (["--set", "keep_layers=0.75"], "smaller models of another set"),
        (["-m", "clip-mini"], "smaller models of another model"),
    ):
        with pytest.raises(InputError, match=says):
            shrink.series(shrink.parse_args([*words, "-s", "50", *more]))
