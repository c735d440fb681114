"""Searches for masks: what the published start of scores does to layers, and what is said of it."""

import pytest
import torch

from models import load_model
from sparsity.picture import draw_progress
from sparsity.progressive_config import ProgressiveConfig
from sparsity.search import Search, initial_score

MLP = "vit.encoder.layer.{}.output.dense.weight"


def attached(**options):
    model = load_model("dino-mini")
    search = Search(ProgressiveConfig(prune="vpns", **options), None)
    search.attach(model)
    return search


def said(capsys):
    return " ".join("".join(capsys.readouterr()).split())


def test_the_published_start_nearly_empties_layers(capsys):
    """dino-mini at 90 %: 4 of 65,536 weights of one MLP output, whose fan-in is 512, stay."""
    mask = attached(sparsity=90.0).mask
    least = min(mask, key=mask.kept)
    assert (mask.kept(least), mask.size(least)) == (4, 65_536)
    assert least in (MLP.format(number) for number in range(6))
    warning = said(capsys)
    assert "warning: less than 1 % is kept of" in warning and least in warning
    assert "--min_kept sets a floor; --score_init magnitude starts elsewhere" in warning


def test_what_the_warning_offers_does(capsys):
    for options in ({"score_init": "magnitude"}, {"min_kept": 0.01}):
        mask = attached(sparsity=90.0, **options).mask
        assert min(mask.kept(name) / mask.size(name) for name in mask) >= 0.01
        assert sum(map(mask.kept, mask)) == round(0.1 * sum(map(mask.size, mask)))
        assert "warning" not in said(capsys)


def test_the_picture_shows_both_stages(tmp_path, monkeypatch):
    """Layers by their names, whole steps, and a line where the mask was found."""
    search, figures = attached(sparsity=90.0), []
    search.started(4, 2)
    for step in range(1, 5):
        search.after_update(step)
    search.searching = False
    search.started(6, 3)
    assert [point["step"] for point in search.history] == [0, 1, 2, 3, 4, 10]
    assert [point.get("begins") for point in search.history] == [None] * 4 + ["training", None]
    monkeypatch.setattr("sparsity.picture.save_picture", lambda figure, path: figures.append(figure))
    draw_progress(search.history, search.mask, tmp_path / "p.png", "title")
    above, below = figures[0].axes[:2]
    assert below.get_xlim() == above.get_xlim() == (0, 10)
    assert [label.get_text() for label in below.get_yticklabels()] == list(search.mask)
    assert [text.get_text().strip() for text in above.texts] == ["training"]


@pytest.mark.parametrize("kind", ["published", "magnitude"])
def test_a_layer_of_zeros_has_scores_of_zero(kind):
    score = initial_score(torch.zeros(3, 4), kind)
    assert torch.equal(score, torch.zeros(3, 4))
