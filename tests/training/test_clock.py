"""Seconds by a clock that the test turns."""

import json
import time

import pytest

from training.clock import SAVE_SECONDS, Clock
from training.run import earlier_seconds


@pytest.fixture
def turn(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def forward(seconds):
        now[0] += seconds

    return forward


def test_evaluation_within_training(turn, tmp_path):
    clock = Clock(tmp_path / "seconds.json")
    turn(2)  # loading
    with clock.doing("training"):
        turn(10)
        with clock.doing("evaluation"):
            turn(3)
        turn(5)
    with clock.doing("evaluation"):
        turn(4)
    assert clock.seconds() == {"training": 15, "evaluation": 7, "total": 24, "sittings": 1}


def test_sessions_add_up(turn, tmp_path):
    path = tmp_path / "seconds.json"
    first = Clock(path)
    with first.doing("training"):
        turn(SAVE_SECONDS + 1)
        first.save(now=False)
        turn(SAVE_SECONDS - 1)
        first.save(now=False)  # too early, and then it is killed
    second = Clock(path, path)
    turn(1)
    with second.doing("training"):
        turn(4)
    assert second.seconds() == {"training": SAVE_SECONDS + 5, "evaluation": 0, "total": SAVE_SECONDS + 6, "sittings": 2}
    second.save()
    assert Clock(path, path).seconds()["sittings"] == 3
    assert Clock(path).seconds() == {"training": 0, "evaluation": 0, "total": 0, "sittings": 1}, "a run started anew"


def test_a_finished_run_takes_no_longer_than_it_did(turn, tmp_path):
    path = tmp_path / "seconds.json"
    done = {"training": 7.5, "evaluation": 1.0, "total": 9.0, "sittings": 2}
    path.write_text(json.dumps(done))
    again = Clock(path, path)
    turn(3)
    again.stop_counting()
    with again.doing("evaluation"):
        turn(5)
    assert again.seconds() == done


@pytest.mark.parametrize("stage", ["", "search"])
def test_the_time_of_a_search_counts(stage, tmp_path):
    """Of a run that is resumed in its folder, and of one that starts from its snapshot."""
    snapshot = tmp_path / stage / "snapshot.pt"
    snapshot.parent.mkdir(exist_ok=True)
    assert earlier_seconds(tmp_path, None) is None
    assert earlier_seconds(tmp_path / "new", snapshot) == tmp_path / "seconds.json"
    snapshot.touch()
    assert earlier_seconds(tmp_path, None) == tmp_path / "seconds.json"


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"training": "x"}', '{"training": 1}'])
def test_a_truncated_file_costs_only_the_time(text, turn, tmp_path):
    (tmp_path / "seconds.json").write_text(text)
    clock = Clock(tmp_path / "seconds.json", tmp_path / "seconds.json")
    turn(1)
    assert clock.seconds() == {"training": 0, "evaluation": 0, "total": 1, "sittings": 1}
