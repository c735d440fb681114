"""Counts of layers, dead neurons and warnings: by hand, and by plain loops."""

import pytest
import torch

from inspection.layers import Counts, count_layer, count_layers, total, warnings
from sparsity.mask import Mask
from tests.inspection.masks import mask_of


def test_dead_rows_and_columns_by_hand():
    """Eight inputs are a whole byte, five are not: both ways of counting."""
    mask = mask_of(
        bytes=[[1, 0, 1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1, 1]],
        bits=[[0, 0, 0, 0, 0], [0, 1, 0, 0, 1]],
    )
    assert count_layer(mask, "bytes.weight") == Counts(24, 7, outputs=3, dead_outputs=1, inputs=8, dead_inputs=3)
    assert count_layer(mask, "bits.weight") == Counts(10, 2, outputs=2, dead_outputs=1, inputs=5, dead_inputs=3)
    assert total(count_layers(mask).values()) == Counts(34, 9, outputs=5, dead_outputs=2, inputs=13, dead_inputs=6)
    assert total(count_layers(mask).values()).sparsity == pytest.approx(25 / 34)


def test_inputs_of_a_convolution_are_channels():
    kept = torch.zeros(2, 3, 2, 2).bool()
    kept[0, 0, 1, 0] = kept[0, 2, 0, 1] = True
    counts = count_layer(Mask({"conv.weight": kept}), "conv.weight")
    assert (counts.dead_outputs, counts.dead_inputs) == (1, 1)


@pytest.mark.parametrize("shape", [(9, 16), (16, 9), (40, 8), (5, 3, 8)])
def test_dead_neurons_by_loops(shape):
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.07
    counts = count_layer(Mask({"w": kept}), "w")
    assert counts.dead_outputs == sum(not kept[o].any() for o in range(shape[0]))
    assert counts.dead_inputs == sum(not kept[:, i].any() for i in range(shape[1]))
    assert 0 < counts.dead_outputs + counts.dead_inputs < sum(shape[:2])


def test_warnings_name_what_collapsed():
    full, one, none = torch.ones(20, 20).bool(), torch.zeros(20, 20).bool(), torch.zeros(20, 20).bool()
    one[3, 4] = True
    mask = Mask(
        {"a.weight": full, "b.weight": one, "c.weight": none, "d.weight": none},
        {"a.weight": "vision", "b.weight": "vision", "c.weight": "vision", "d.weight": "text"},
    )
    assert warnings(mask, count_layers(mask)) == [
        "no weight of the text modality is kept",
        "no weight is kept in 1 layer: c.weight",
        "fewer than 1% of the weights are kept in 1 layer: b.weight",
        "more than half of the outputs are dead in 1 layer: b.weight",
        "more than half of the inputs are dead in 1 layer: b.weight",
    ]
    sound = Mask({"a.weight": full})
    assert warnings(sound, count_layers(sound)) == []
