"""What a progress bar leaves behind where nothing can be redrawn."""

import io
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from console import progress


@pytest.fixture
def drawn(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=file, width=120, force_terminal=False))
    return file


def test_only_the_last_state_is_drawn(drawn):
    with progress.progress_bar("calibrating", 40, done=10) as advance:
        for _ in range(28):
            advance()
        advance(2, "loss 0.5")
    lines = [line for line in drawn.getvalue().splitlines() if line.strip()]
    assert len(lines) == 1
    assert "calibrating" in lines[0]
    assert "40/40" in lines[0]
    assert "loss 0.5" in lines[0]


def test_an_interrupted_bar_says_how_far_it_came(drawn):
    with pytest.raises(KeyboardInterrupt), progress.progress_bar("calibrating", 40) as advance:
        advance(7)
        raise KeyboardInterrupt
    assert "7/40" in drawn.getvalue().replace(" ", "")


def test_a_total_may_be_unknown_and_a_bar_hidden(drawn):
    with progress.progress_bar("hidden", 3, show=False) as advance:
        advance()
    assert drawn.getvalue() == ""
    with progress.progress_bar("endless", None) as advance:
        advance(5)
    assert "5/?" in drawn.getvalue().replace(" ", "")


def test_a_bar_within_a_bar_is_gone_when_it_is_done(drawn, monkeypatch):
    with progress.progress_bar("inner", 2, keep=False) as advance:
        advance(2)
    assert drawn.getvalue() == ""  # no terminal, and no last state to keep
    monkeypatch.setattr(progress, "console", Console(file=drawn, width=120, force_terminal=True))
    with progress.progress_bar("outer", 3) as advance:
        with progress.progress_bar("inner", 2, keep=False) as inner:
            inner(2)
        advance(3)
    assert "inner" in drawn.getvalue()
    last = [line for line in drawn.getvalue().splitlines() if "er " in line][-1]
    assert "outer" in last.rpartition("\r")[2]


def test_a_bar_of_bytes_appears_with_the_first(drawn):
    with progress.transfer_bar("fetching"):
        pass
    assert drawn.getvalue().strip() == ""
    with progress.transfer_bar("fetching") as show:
        show(500_000, None)
        show(750_000, 1_500_000)
    lines = [line for line in drawn.getvalue().splitlines() if line.strip()]
    assert len(lines) == 1
    assert "fetching" in lines[0]
    assert "750.0/1500.0kB" in lines[0].replace(" ", "") or "0.8/1.5MB" in lines[0].replace(" ", "")


def test_a_note_is_said_once(drawn):
    for text in ("[3 left out]", "[3 left out]", "4 left out"):
        progress.say_once(text)
    assert drawn.getvalue() == "[3 left out]\n4 left out\n"


def test_of_several_processes_the_first_says_it(drawn, monkeypatch):
    for rank in (1, 0):
        states = {"is_available": lambda: True, "is_initialized": lambda: True, "get_rank": lambda rank=rank: rank}
        monkeypatch.setitem(sys.modules, "torch.distributed", SimpleNamespace(**states))
        progress.say_once(f"by {rank}")
    assert drawn.getvalue() == "by 0\n"
