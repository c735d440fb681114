"""What decides about the epochs behind a snapshot, beside it and in another folder; numbers and bests by hand."""

import json

import pytest
import torch
from torch import nn

from console.errors import InputError
from training.epoch_weights import best_epoch, check_epochs, copy_epochs, keep_epoch, load_best, read_epochs

SCORES = [3.0, 5.0, 5.0, 4.0, 6.0]  # epochs 1 to 5: the bests are 1, 2, 2, 2, 5


def layer(epoch):
    made = nn.Linear(2, 2)
    nn.init.constant_(made.weight, epoch)
    return made


@pytest.fixture
def folder(tmp_path):
    """A run of five epochs."""
    for epoch, score in enumerate(SCORES, start=1):
        keep_epoch(tmp_path / "run", epoch, {"r_mean": score}, layer(epoch), "r_mean")
    return tmp_path / "run"


def up_to(folder, epochs):
    """The same run when its first `epochs` epochs were done."""
    for epoch in range(1, epochs + 1):
        keep_epoch(folder, epoch, {"r_mean": SCORES[epoch - 1]}, layer(epoch), "r_mean")
    return folder / "snapshot.pt"


def test_the_first_of_equal_epochs_is_the_best(folder):
    lines = read_epochs(folder)
    assert [best_epoch(lines[:n], "r_mean") for n in range(1, 6)] == [1, 2, 2, 2, 5]


def test_resuming_elsewhere_copies_the_best_epoch(tmp_path):
    """Epoch 4 is worse than epoch 2, which only the first folder knows."""
    snapshot = up_to(tmp_path / "first", 3)
    check_epochs(snapshot, 3, "r_mean")
    copy_epochs(snapshot.parent, tmp_path / "second", 3)
    keep_epoch(tmp_path / "second", 4, {"r_mean": SCORES[3]}, layer(4), "r_mean")
    model = layer(0)
    assert load_best(tmp_path / "second", model, "r_mean") == 2
    assert torch.equal(model.weight, layer(2).weight)
    assert [line["r_mean"] for line in read_epochs(tmp_path / "second")] == SCORES[:4]


def test_lines_after_the_snapshot_are_dropped(folder, tmp_path):
    """A killed run may have logged and kept an epoch that its snapshot does not know: it comes again."""
    (folder / "epochs.jsonl").open("a").write('{"epoch": 6, "r_m')
    check_epochs(folder / "snapshot.pt", 4, "r_mean")
    copy_epochs(folder, tmp_path / "second", 4)
    assert [line["epoch"] for line in read_epochs(tmp_path / "second")] == [1, 2, 3, 4]


def test_the_own_folder_is_left_as_it_is(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    copy_epochs(folder, folder, 3)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(("epochs", "decides"), [(0, "r_mean"), (3, None)])
def test_the_last_epoch_needs_no_earlier_ones(epochs, decides, tmp_path):
    check_epochs(tmp_path / "snapshot.pt", epochs, decides)


def test_what_is_missing_is_named(tmp_path):
    snapshot = up_to(tmp_path, 3)
    with pytest.raises(InputError, match=r"follows 4 epochs, but epochs\.jsonl next to it has 3"):
        check_epochs(snapshot, 4, "r_mean")
    other = json.dumps({"epoch": 1, "r_mean": 9.0})
    lines = (tmp_path / "epochs.jsonl").read_text().splitlines()
    (tmp_path / "epochs.jsonl").write_text("\n".join([other, *lines[1:]]) + "\n")
    with pytest.raises(InputError, match=r"best\.safetensors is of epoch 2, but the best one before .* is 1"):
        check_epochs(snapshot, 3, "r_mean")
    (tmp_path / "best.safetensors").unlink()
    with pytest.raises(InputError, match=r"best\.safetensors is missing, the weights of epoch 1"):
        check_epochs(snapshot, 3, "r_mean")
