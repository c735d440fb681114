"""LAMP's threshold, found from bins, against the cut of all scores, which sorting every weight gives."""

import numpy as np
import pytest

from pruners.lamp import lamp_cuts, lamp_scores
from sparsity.scores import Scores
from sparsity.select import cut_layers, split_ties

SHAPES = ((40, 30), (7, 50), (1, 1), (64, 20))
MAKE = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "scales": lambda rng, shape: rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3),
    "zeros": lambda rng, shape: rng.standard_normal(shape) * (rng.random(shape) < 0.3),
    "nothing": lambda rng, shape: np.zeros(shape),
    "ties": lambda rng, shape: rng.integers(0, 5, shape),
    "constant": lambda rng, shape: np.full(shape, 0.25),
    "neighbours": lambda rng, shape: 1 + rng.integers(0, 50, shape) * 2.0**-23,  # one score for several magnitudes
    "denormal": lambda rng, shape: rng.standard_normal(shape) * 1e-39,
    "heavy tail": lambda rng, shape: rng.standard_normal(shape) ** 9,
}


@pytest.mark.parametrize("kind", MAKE)
def test_cuts_equal_those_of_all_scores(kind):
    rng = np.random.default_rng(0)
    for _ in range(5):
        layers = {str(i): np.abs(MAKE[kind](rng, shape)).astype(np.float32) for i, shape in enumerate(SHAPES)}
        scores = Scores.of({name: lamp_scores(layer) for name, layer in layers.items()})
        total = scores.total()
        counts = [0, 1, total // 3, round(0.63 * total), round(0.9 * total), total - 1, total]
        found = lamp_cuts(Scores.of(layers), counts)
        for i, cut in enumerate(cut_layers(scores, counts)):
            for name, of_layer in split_ties(scores, cut).items():
                expected = of_layer.keep(scores[name])
                np.testing.assert_array_equal(
                    found[name][i].keep(layers[name]), expected, err_msg=f"{counts[i]} {name}"
                )


def test_scores_equal_plain_sums():
    """Of whole numbers, whose squares and sums are exact in any order."""
    weights = np.random.default_rng(1).integers(-40, 40, (30, 20)).astype(np.float32)
    squares = [float(w) ** 2 for w in weights.ravel()]
    plain = [s / sum(t for t in squares if t >= s) if s else 0.0 for s in squares]
    np.testing.assert_array_equal(lamp_scores(weights).ravel(), np.float32(plain))
