"""Weights kept, against zeros put there by hand."""

from types import SimpleNamespace

import torch
from torch import nn

from models.base import Model
from models.wrap import wrap
from training.kept import Count, as_json, count_kept, in_all, show_kept
from training.run import sparsify


class Towers(Model):
    """Two towers of vision and one of text; the head is not prunable."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(5, 2), nn.Linear(2, 9)
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def prunable_layers(self):
        return {f"{name}.weight": getattr(self, name) for name in ("a", "b", "c")}

    def modality_of(self, name):
        return "text" if name.startswith("c") else "vision"


def test_zeros_are_counted_by_modality():
    model = Towers()
    with torch.no_grad():
        model.a.weight[0] = 0  # 4 of 12
        model.b.weight[1, 2] = -0.0  # 1 of 6: a negative zero is one, too
        model.c.weight[:, :3] = 0  # 6 of 10
        model.c.bias.zero_()
        model.head.weight.zero_()
    counts = count_kept(model)
    assert counts == {"vision": Count(13, 18), "text": Count(4, 10)}
    assert in_all(counts) == Count(17, 28)
    assert as_json(counts) == {
        "all": {"kept": 17, "of": 28, "share": round(17 / 28, 6)},
        "by_modality": {
            "vision": {"kept": 13, "of": 18, "share": round(13 / 18, 6)},
            "text": {"kept": 4, "of": 10, "share": 0.4},
        },
    }


def test_the_table_of_kept_weights(capsys):
    before, after = (
        {"vision": Count(9, 12), "text": Count(1000, 4000)},
        {"vision": Count(9, 12), "text": Count(0, 4000)},
    )
    model = wrap(nn.Sequential(nn.Linear(2, 3), nn.Bilinear(3, 2, 2)))
    show_kept({"after loading the mask": before, "after training": after}, model)
    printed = capsys.readouterr().out
    assert "6 prunable weights, 33.3 % of those in the model's matrices" in " ".join(printed.split())
    assert "after loading the mask" in printed
    assert "after training" in printed
    rows = {line.split("│")[1].strip(): line for line in printed.splitlines() if line.startswith("│")}
    assert list(rows) == ["vision", "text", "all"]
    assert "1,000 (25.00 %)" in rows["text"]
    assert "0 (0.00 %)" in rows["text"]
    assert "1,009 (25.15 %)" in rows["all"]
    assert "4,012" in rows["all"]


def test_a_model_is_placed_before_its_sparsifier():
    """Scores and running means of a sparsifier are made beside the weights: on the device."""
    happened = []
    fabric = SimpleNamespace(to_device=lambda model: happened.append("placed"))
    sparsifier = SimpleNamespace(attach=lambda model: happened.append("attached"), mask=None)
    run = SimpleNamespace(fabric=fabric, args=SimpleNamespace(evaluate=False), leads=True, kept={})
    sparsify(run, Tiny(), sparsifier)
    assert happened == ["placed", "attached"]


class Tiny(Model):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)
