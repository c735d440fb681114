"""Spread and tails of weights against scipy."""

import numpy as np
import pytest
from scipy.stats import kurtosis

from evaluation.weight_shape import weight_shape


def test_moments(xvlm):
    found = weight_shape(xvlm)
    assert set(found) == {"vision", "text", "fusion"}
    for modality, (n, std, tails) in found.items():
        weights = np.concatenate(
            [
                layer.weight.detach().double().numpy().ravel()
                for name, layer in xvlm.prunable_layers().items()
                if xvlm.modality_of(name) == modality
            ]
        )
        assert n == weights.size
        assert std == pytest.approx(weights.std(), rel=1e-9)
        assert tails == pytest.approx(kurtosis(weights), rel=1e-6, abs=1e-9)
