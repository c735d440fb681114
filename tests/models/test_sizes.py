"""Layers with sizes of their own: a stack that lost heads and neurons against the whole one in which they are zero."""

import copy

import pytest
import torch

from console.errors import InputError
from models import load_model, load_task_model
from models.conformance import CHECKS
from tests.conftest import REFERENCE

SIZES = {
    "xvlm": {
        "vision": {"heads": [4, 1, 2, 3], "head_width": 16, "mlp": [256, 5, 100, 7]},
        "text": {"heads": [1, 2, 3, 4, 4, 1, 2, 4], "cross_heads": [3, 1], "head_width": 16, "mlp": [9, 320] * 4},
    },
    "blip": {
        "vision": {"heads": [4, 1, 2, 3], "head_width": 16, "mlp": [5, 256, 1, 100]},
        "text": {"heads": [3, 1, 4], "cross_heads": [1, 2, 4], "head_width": 16, "mlp": [7, 250, 320]},
    },
    "dino": {"heads": [3, 1, 4, 2], "head_width": 16, "mlp": [5, 256, 1, 100]},
}


def loaded(name, overrides):
    return load_model(name, config=REFERENCE / f"{name}.yaml", weights="random", overrides=overrides)


def cut(whole, shape):
    """The first rows and columns; of the rows of a fused qkv matrix the first of each third."""
    if ".qkv." in shape[0]:
        whole = torch.cat([part[: shape[1][0] // 3] for part in whole.chunk(3)])
    return whole[tuple(slice(size) for size in shape[1])]


@pytest.mark.parametrize("name", SIZES)
def test_equals_the_masked_dense_model(name):
    whole, part = loaded(name, {}), loaded(name, SIZES[name])
    state = part.state_dict()
    smaller = [key for key, tensor in whole.state_dict().items() if tensor.shape != state[key].shape]
    assert len(smaller) > 10
    with torch.no_grad():
        for key, tensor in whole.state_dict().items():
            state[key].copy_(cut(tensor, (key, state[key].shape)))
            if key in smaller and tensor.dim() == 2 and tensor.shape[1] > state[key].shape[1]:
                tensor[:, state[key].shape[1] :] = 0  # what they would add
    for batch in whole.example(4).values():
        found = []
        for model in (whole, part):
            torch.manual_seed(1)  # of hard negatives
            with torch.no_grad():
                found.append(copy.deepcopy(model).losses(batch))
        for loss, value in found[0].items():
            torch.testing.assert_close(found[1][loss], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check, name):
    torch.manual_seed(0)
    assert CHECKS[check](loaded(name, SIZES[name]))


@pytest.mark.parametrize("task", ["retrieval", "captioning", "vqa"])
def test_task_models_have_the_same_sizes(task):
    model = load_task_model("xvlm", task, config=REFERENCE / "xvlm.yaml", weights="random", overrides=SIZES["xvlm"])
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["vision_encoder.encoder.layers.1.self_attn.q_proj.weight"] == (16, 64)
    if task == "vqa":  # the decoder is made of the fusion layers
        assert shapes["text_decoder.bert.encoder.layer.1.attention.self.query.weight"] == (64, 64)
        assert shapes["text_decoder.bert.encoder.layer.1.crossattention.self.query.weight"] == (16, 64)
        assert shapes["text_decoder.bert.encoder.layer.0.intermediate.dense.weight"] == (9, 64)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"heads": [4]}, "heads has 1 numbers for 4 layers"),
        ({"mlp": [4, 0, 1, 1]}, "mlp must be at least 1 in each layer"),
        ({"heads": [4, 2, 1, 1]}, "head_width is missing"),
        ({"heads": 5}, "a width of 64 does not divide into 5 heads"),
        ({"heads": "four"}, "'heads' must be a whole number, not 'four'"),
    ],
)
def test_impossible_sizes(sizes, message):
    with pytest.raises(InputError, match=message):
        loaded("dino", sizes)
