"""Short names: what is left must still tell the things apart."""

from pathlib import Path

import pytest

from inspection.layers import block_and_rest
from inspection.reading import labels


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["o/m_omp_75_seed42.safetensors", "l/m_lamp_75_seed42.safetensors"], ["omp", "lamp"]),
        (["m_omp_75_seed42.safetensors", "m_omp_62.5_seed42.safetensors"], ["75", "62.5"]),
        (["m_omp_75_seed42.safetensors", "m_omp_75_seed43.safetensors"], ["seed42", "seed43"]),
        (["a/m_75.safetensors", "b/m_75.safetensors"], ["a", "b"]),
        (["m.safetensors", "m.safetensors"], ["m (1)", "m (2)"]),
        (["m_75.safetensors", "m_75_b.safetensors"], ["m_75", "m_75_b"]),
        (["only_one.safetensors"], ["only_one"]),
        ([], []),
    ],
)
def test_labels(paths, expected):
    assert labels([Path(path) for path in paths]) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vision_encoder.encoder.layers.0.mlp.fc1.weight", ("vision_encoder.0", "mlp.fc1")),
        ("text_encoder.bert.encoder.layer.3.attention.self.query.weight", ("text_encoder.3", "attention.query")),
        ("head.weight", ("", "head")),
        ("net.0.weight", ("net", "0")),
        ("vision.proj.weight", ("vision", "proj")),
    ],
)
def test_blocks(name, expected):
    assert block_and_rest(name) == expected
