"""Checkpoints as people have them: the same weights, whatever was wrapped around them, under every family."""

import argparse
import copy

import lightning
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from console.errors import InputError
from models import load_model, weights_path
from models.common.nesting import inner_state, unwrapped
from pruners.preparing import weights_identity
from storage.hashing import hash_file

MINIS = ("xvlm-mini", "blip-mini", "dino-mini")


@pytest.fixture(scope="module", params=MINIS)
def mini(request):
    """A name, and a model of it that no test may change."""
    return request.param, load_model(request.param)


def plain(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def loads(name, path, model):
    """The weights are the same to the bit; the report is given back."""
    again = load_model(name, weights=path)
    state = again.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert again.load_report.loaded == len(state)
    return again.load_report


class Trained(lightning.LightningModule):
    """A model in somebody's Lightning module, with weights of a loss beside it."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("class_weights", torch.ones(3))


WRAPPED = {
    "parallel": torch.nn.DataParallel,
    "compiled": torch.compile,
    "compiled in parallel": lambda model: torch.nn.DataParallel(torch.compile(model)),
    "averaged": AveragedModel,
    "lightning": Trained,
    "lightning in parallel": lambda model: torch.nn.DataParallel(Trained(model)),
}
OUTSIDE = {"averaged": ["n_averaged"], "lightning": ["class_weights"], "lightning in parallel": ["class_weights"]}


@pytest.mark.parametrize("kind", WRAPPED)
def test_prefixes_that_wrappers_write(kind, mini, tmp_path):
    name, model = mini
    state = WRAPPED[kind](copy.deepcopy(model)).state_dict()
    assert not state.keys() & model.state_dict().keys()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.ckpt")
    report = loads(name, tmp_path / "a.ckpt", model)
    assert set(OUTSIDE.get(kind, [])) <= set(report.dropped)
    assert "under 'state_dict' (next to it: epoch); without " in str(report)


def test_compiled_parts(mini, tmp_path):
    name, model = mini
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for part, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear):
                setattr(parent, part, torch.compile(child))
    state = dict(model.state_dict())
    assert any("._orig_mod." in key for key in state)
    torch.save(state, tmp_path / "a.pth")
    report = loads(name, tmp_path / "a.pth", mini[1])
    assert report.unwrapped == ["without '_orig_mod.' in names"]


@pytest.mark.parametrize(
    "places",
    [("model",), ("model_ema",), ("state_dict_ema",), ("net",), ("student",), ("teacher",), ("state_dict", "model"),
     ("model_state_dict",), ("ema", "module")],
    ids="/".join,
)  # fmt: skip
def test_keys_above_the_weights(places, mini, tmp_path):
    name, model = mini
    content = plain(model)
    for place in reversed(places):
        content = {place: content, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": []}}
    torch.save(content, tmp_path / "a.pth")
    assert f"under '{places[-1]}'" in loads(name, tmp_path / "a.pth", model).unwrapped[-1]


def test_harmless_objects_next_to_the_weights(mini, tmp_path):
    name, model = mini
    beside = {"args": argparse.Namespace(lr=0.1), "best": np.float64(0.7), "out": tmp_path, "epoch": 3}
    torch.save({"model": plain(model)} | beside, tmp_path / "a.pth")
    loads(name, tmp_path / "a.pth", model)
    torch.save(plain(model) | beside, tmp_path / "b.pth")
    assert set(beside) <= set(loads(name, tmp_path / "b.pth", model).dropped)


def test_sparse_tensors(tmp_path):
    model = load_model("dino-mini")
    state = plain(model)
    some = [name for name, tensor in state.items() if tensor.dim() == 2]
    state |= {some[0]: state[some[0]].to_sparse(), some[1]: state[some[1]].to_sparse_csr()}
    torch.save(state, tmp_path / "a.pth")
    loads("dino-mini", tmp_path / "a.pth", model)
    outside = torch.sparse_coo_tensor([[1], [0]], torch.ones(1), (2, 2))
    outside._indices()[0] = 9
    torch.save({"a.weight": outside}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="is corrupt"):
        load_model("dino-mini", weights=tmp_path / "a.pth")


def test_teacher_before_student_for_dino_alone(tmp_path):
    state = plain(load_model("dino-mini"))
    other = {key: tensor + 1 for key, tensor in state.items()}
    torch.save({"student": other, "teacher": state}, tmp_path / "a.pth")
    loads("dino-mini", tmp_path / "a.pth", load_model("dino-mini"))
    assert inner_state({"student": other, "teacher": state})[0] is other


def test_shards_folders_and_other_endings(mini, tmp_path):
    name, model = mini
    state = plain(model)
    keys = list(state)
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        save_file({key: state[key].contiguous() for key in part}, tmp_path / f"m-{number:05}-of-00002.safetensors")
    for path in (tmp_path, tmp_path / "m-00002-of-00002.safetensors"):
        assert "in 2 shards" in str(loads(name, path, model))
    assert weights_path(name, tmp_path, None) == tmp_path
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "m.bin")
    loads(name, tmp_path / "m.bin", model)


def test_identity_of_shards_and_of_a_file(tmp_path):
    state = plain(load_model("dino-mini"))
    torch.save(state, tmp_path / "one.pth")
    identity = weights_identity(load_model("dino-mini", weights=tmp_path / "one.pth"))
    assert identity == {"file": str(tmp_path / "one.pth"), "sha256": hash_file(tmp_path / "one.pth")}
    folder = tmp_path / "shards"
    folder.mkdir()
    keys = list(state)
    for number, part in enumerate((keys[:50], keys[50:]), start=1):
        torch.save({key: state[key] for key in part}, folder / f"m-{number}-of-2.pth")
    seen = {
        weights_identity(load_model("dino-mini", weights=path))["sha256"]
        for path in (folder, folder / "m-1-of-2.pth", folder / "m-2-of-2.pth")
    }
    assert len(seen) == 1
    torch.save({key: state[key] + 1 for key in keys[50:]}, folder / "m-2-of-2.pth")
    assert weights_identity(load_model("dino-mini", weights=folder))["sha256"] not in seen


class TestPrefixesByHand:
    def met(self, *names):
        return lambda state: {key for key in state if key in names}

    def test_a_models_own_names_stay(self):
        state = {"model.a": 1, "model.b": 2}
        assert unwrapped(state, self.met("model.a", "model.b"))[0] == state
        assert unwrapped({f"module.{key}": value for key, value in state.items()}, self.met(*state))[0] == state
        assert unwrapped({f"model.{key}": value for key, value in state.items()}, self.met(*state))[0] == state

    def test_a_compiled_part_of_a_models_own(self):
        state = {"model._orig_mod.a": 1, "model._orig_mod.b": 2}
        found, off, _ = unwrapped(state, self.met("model.a", "model.b"))
        assert (found, off) == ({"model.a": 1, "model.b": 2}, ["without '_orig_mod.' in names"])
        assert unwrapped(state, self.met(*state)) == (state, [], [])

    def test_none_that_was_met_may_be_lost(self):
        state = {"model.a": 1, "model.b": 2, "model.c": 3}
        assert unwrapped(state, self.met("model.a", "b", "c"))[0] == state

    def test_nothing_fits(self):
        state = {"module.x": 1, "module.y": 2}
        assert unwrapped(state, self.met("a")) == (state, [], [])


def test_messages_name_what_is_there(tmp_path):
    for content, message in (
        ({"optimizer": {"state": {}}, "epoch": 3}, "its keys are optimizer, epoch"),
        (torch.ones(2), "it is a Tensor"),
        ({}, "it is a dict without any"),
        ({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, "its keys are a, b"),
    ):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(InputError, match=message):
            load_model("dino-mini", weights=tmp_path / "a.pth")
    with pytest.raises(InputError, match="a folder with several weights files"):
        torch.save(content, tmp_path / "b.pth")
        load_model("dino-mini", weights=tmp_path)
