"""Rates against values worked out by hand and against transformers' schedules."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from console.errors import InputError
from training.schedule import Schedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(0.2, "none"), [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        (Schedule(0.2, "linear"), [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        (Schedule(0.0, "linear"), [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        (Schedule(0.0, "late"), [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (Schedule(0.5, "late"), [1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1, 1, 0.5]),
        (Schedule(0.6, "cosine"), [1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1, 0.853553, 0.5, 0.146447]),
        (Schedule(0.04, "none"), [1] * 10),  # less than half a step of warming up
    ],
)
def test_ten_steps_by_hand(schedule, expected):
    assert [schedule.factor(step, 10) for step in range(10)] == pytest.approx(expected, abs=1e-6)


def test_one_schedule_over_two_runs():
    """Of different lengths: each has its part, warming up is in the first alone, and the rate goes on where it was."""
    whole = Schedule(0.2, "cosine")
    first, second = (Schedule(0.2, "cosine", span=span) for span in ([0.0, 0.5], [0.5, 1.0]))
    expected = [whole.factor(step, 40) for step in range(40)]
    assert [first.factor(step, 20) for step in range(20)] == pytest.approx(expected[:20])
    assert [second.factor(step, 20) for step in range(20)] == pytest.approx(expected[20:])
    assert [second.factor(step, 10) for step in range(10)] == pytest.approx(expected[20::2])
    with pytest.raises(InputError, match="span is the part"):
        Schedule(span=[0.5, 0.5])


@pytest.mark.parametrize(
    ("decay", "reference"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_the_fall_is_that_of_transformers(decay, reference):
    """Which warms up from exactly 0, as the published runs do, and so wastes its first step: t/w, and here t+1/w+1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = reference(optimizer, 30, 200)
    for step in range(200):
        published, ours = scheduler.get_last_lr()[0], Schedule(0.15, decay).factor(step, 200)
        if step < 30:
            assert (published, ours) == (pytest.approx(step / 30), pytest.approx((step + 1) / 31))
        else:
            assert ours == pytest.approx(published, abs=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("decay", ["linear", "cosine", "late", "none"])
def test_short_runs_still_learn(decay, steps):
    factors = [Schedule(0.1, decay).factor(step, steps) for step in range(steps)]
    assert factors[0] == 1
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decay": "linar"}, r"unknown decay 'linar' \(did you mean 'linear'\?\)"),
        ({"warmup": 1.0}, "from 0 to below 1, not 1.0"),
        ({"warmup": -0.1}, "from 0 to below 1"),
        ({"warmup": float("nan")}, "from 0 to below 1"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(InputError, match=message):
        Schedule(**values)
