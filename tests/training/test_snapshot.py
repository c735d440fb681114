"""Snapshots: what they restore and what they refuse."""

import pickle

import pytest
import torch
from lightning.fabric.plugins import Precision
from torch import nn

from console.errors import InputError
from tests.storage.test_tensors import Bomb
from tests.training.toy import IDENTITY, Toy, same_weights
from training.optimizer import Recipe, make_optimizer
from training.snapshot import load_snapshot, refuse_another_run, save_snapshot

RECIPE = Recipe(lr=0.1, no_decay=["bias"])


def step(module, optimizer):
    torch.manual_seed(0)
    sum(module((torch.randn(3, 4), torch.randn(3, 2))).values()).backward()
    optimizer.step()
    optimizer.zero_grad()


def saved(path):
    module = Toy()
    optimizer = make_optimizer(module.named_parameters(), RECIPE)
    step(module, optimizer)
    save_snapshot(path, module, optimizer, 7, IDENTITY, Precision(), {})
    return module, optimizer


def load(path, identity=IDENTITY, module=None):
    module = module or Toy(99)
    return load_snapshot(path, module, make_optimizer(module.named_parameters(), RECIPE), identity, Precision(), {})


def test_weights_and_the_optimizers_memory_come_back(tmp_path):
    module, optimizer = saved(tmp_path / "snapshot.pt")
    other = Toy(99)
    other_optimizer = make_optimizer(other.named_parameters(), RECIPE)
    assert load_snapshot(tmp_path / "snapshot.pt", other, other_optimizer, IDENTITY, Precision(), {}) == 7
    assert same_weights(other, module)
    for _ in range(3):  # equal weights alone would part ways here: Adam's averages differ
        step(module, optimizer)
        step(other, other_optimizer)
    assert same_weights(other, module)
    fresh = Toy()
    step(fresh, make_optimizer(fresh.named_parameters(), RECIPE))
    fresh_optimizer = make_optimizer(fresh.named_parameters(), RECIPE)
    for _ in range(3):
        step(fresh, fresh_optimizer)
    assert not same_weights(fresh, module)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, r"seed was 3, now it is 4"),
        ({"model": "blip"}, r"model was 'toy', now it is 'blip'"),
        ({"stage": {"recipe": {"lr": 0.05}, "sides": {"a": 1}}}, r"stage\.sides\.a was not given, now it is 1"),
        ({"stage": {"recipe": {}, "sides": {}}}, r"stage\.recipe\.lr was 0\.05, now it is not given"),
        ({"processes": 2}, r"processes was not given, now it is 2"),
    ],
)
def test_another_run_is_refused_naming_the_difference(change, message, tmp_path):
    saved(tmp_path / "snapshot.pt")
    module = Toy(99)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path / "snapshot.pt", IDENTITY | change, module)
    assert "snapshot.pt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same_weights(module, Toy(99)), "nothing is loaded before the check"


def test_new_options_may_be_empty(tmp_path):
    then, now = (
        {"files": {"root": ""}, "old": []},
        {"files": {"root": "", "folder": ""}, "none": None, "more": {}, "off": False},
    )
    refuse_another_run(tmp_path, then, now)
    refuse_another_run(tmp_path, now, then)
    with pytest.raises(InputError, match=r"files\.folder was not given, now it is 'x'"):
        refuse_another_run(tmp_path, then, {"files": {"root": "", "folder": "x"}})
    with pytest.raises(InputError, match=r"zero was not given, now it is 0"):  # a value, not an absence
        refuse_another_run(tmp_path, then, then | {"zero": 0})


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95, 0.999])
def test_a_snapshot_cut_short(share, tmp_path):
    path = tmp_path / "snapshot.pt"
    saved(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match=r"snapshot\.pt is corrupt") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"model": {}, "step": 3}, [1, 2], {"w": torch.zeros(2)}])
def test_other_files_are_no_snapshots(content, tmp_path):
    torch.save(content, tmp_path / "snapshot.pt")
    with pytest.raises(InputError, match="is not a snapshot of a training run"):
        load(tmp_path / "snapshot.pt")


def test_a_snapshot_that_would_run_code(tmp_path):
    content = {"model": {}, "optimizer": Bomb(tmp_path / "it-ran"), "step": 1, "identity": IDENTITY}
    (tmp_path / "snapshot.pt").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match="whose loading could run code: it is refused"):
        load(tmp_path / "snapshot.pt")
    assert not (tmp_path / "it-ran").exists()


def test_a_model_whose_sizes_were_edited_meanwhile(tmp_path):
    saved(tmp_path / "snapshot.pt")
    wider = Toy()
    wider.second = nn.Linear(8, 3)
    deeper = Toy()
    deeper.third = nn.Linear(1, 1)
    for module in (wider, deeper):
        with pytest.raises(InputError, match=r"snapshot\.pt does not fit the model") as caught:
            load(tmp_path / "snapshot.pt", module=module)
        assert "\n" not in str(caught.value)


def test_the_loss_scale_of_half_precision_comes_back(tmp_path):
    """A scaler that forgot its scale would take other steps than the run that was never stopped."""

    class Scaled(Precision):
        def __init__(self, scale):
            self.scale = scale

        def state_dict(self):
            return {"scale": self.scale, "_growth_tracker": 3}

        def load_state_dict(self, state):
            self.scale = state["scale"]

    module = Toy()
    save_snapshot(
        tmp_path / "a.pt", module, make_optimizer(module.named_parameters(), RECIPE), 7, IDENTITY, Scaled(128.0), {}
    )
    fresh = Scaled(65536.0)
    load_snapshot(tmp_path / "a.pt", module, make_optimizer(module.named_parameters(), RECIPE), IDENTITY, fresh, {})
    assert fresh.scale == 128.0
