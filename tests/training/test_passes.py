"""What is said of samples that do not fill a batch, against what the batches of a side really hold."""

import pytest
import torch

from data.batches import Side, Sides
from training.passes import epochs_notice, passes_notice


class Numbers:
    """A reader whose samples are their own numbers."""

    def __init__(self, n):
        self.source = type("Source", (), {"__len__": lambda self: n, "name": lambda self, i: str(i)})()

    def sample(self, index, rng):
        return index

    def collate(self, samples, size, rng):
        return {"number": torch.tensor(samples)}


def side(n, size, whole):
    return Side("texts", Numbers(n), size, seed=0, whole=whole)


@pytest.mark.parametrize(("n", "size", "together", "steps"), [(32, 4, 2, 4), (8, 8, 1, 1), (30, 5, 3, 2)])
def test_nothing_is_said_where_all_divides(n, size, together, steps):
    assert epochs_notice(side(n, size, whole=True), steps, together) == ""
    assert passes_notice(side(n, size, whole=False), 100) == ""


def test_what_is_left_out_of_an_epoch():
    """1,234 samples by 32: 38 batches, 18 samples left over, which are others in the next epoch."""
    made = side(1234, 32, whole=True)
    epochs = [{i for t in range(38 * e, 38 * (e + 1)) for i in made[t].used} for e in range(2)]
    out = [set(range(1234)) - used for used in epochs]
    assert [len(left) for left in out] == [18, 18] and out[0] != out[1]
    assert epochs_notice(made, 38, 1) == (
        "an epoch has 38 steps: 18 of 1,234 samples do not fill a batch of 32 and are left out, others in every epoch"
    )


def test_a_last_step_across_passes():
    """40 samples by 4 in steps of three batches: ten batches make four steps, of twelve."""
    made = side(40, 4, whole=True)
    first = [i for t in range(12) for i in made[t].used]
    assert len(set(first[:40])) == 40 and len(first) - 40 == 8
    assert epochs_notice(made, 4, 3) == (
        "an epoch has 4 steps: the last step takes 2 of its 3 batches from the next pass over the data"
    )
    one = epochs_notice(side(5, 4, whole=True), 1, 1)
    assert one.startswith("an epoch has 1 step: 1 of 5 samples does not fill a batch of 4 and is left out")
    both = epochs_notice(side(43, 4, whole=True), 4, 3)
    assert both.startswith("an epoch has 4 steps: 3 of 43 samples do not fill a batch of 4") and "2 of its 3" in both


def test_short_epochs_do_not_come_to_it():
    assert epochs_notice(side(43, 4, whole=True), 2, 3) == ""
    assert passes_notice(side(43, 4, whole=False), 10) == ""


@pytest.mark.parametrize(
    ("n", "whole", "sizes", "said"),
    [
        (11, False, [4, 4, 3], "11 samples has 3 batches of 4; the last one has 3"),
        (11, True, [4, 4], "11 samples has 2 batches of 4; 3 samples do not fill one and are left out"),
        (9, False, [4, 4], "9 samples has 2 batches of 4; 1 sample does not fill one and is left out"),
        (3, False, [3], "3 samples has 1 batch of 4; the last one has 3"),
    ],
)
def test_the_last_batch_of_a_pass(n, whole, sizes, said):
    made = Sides({"texts": Numbers(n)}, 4, seed=0, whole=whole).sides["texts"]
    assert [len(made[t].used) for t in range(made.batches)] == sizes
    assert passes_notice(made, made.batches) == f"texts: a pass over {said}"
