"""The lock: one holder at a time, who waits is told why, and it ends with its holder."""

import signal
import subprocess
import sys
import threading
import time

import pytest

import storage.lock
from console.errors import InputError
from storage.lock import claim, locked, try_lock


def test_one_after_the_other(tmp_path, capsys, monkeypatch):
    path, events, inside = tmp_path / "deep" / ".lock", [], threading.Event()
    monkeypatch.setattr(storage.lock.console, "print", lambda text, markup: events.append(text))

    def first():
        with locked(path, "write", "nobody holds it"):
            inside.set()
            while not events:
                time.sleep(0.005)
            events.append("first leaves")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with locked(path, "write", "another process writes"):
        events.append("second enters")
    thread.join(10)
    assert events == ["waiting: another process writes", "first leaves", "second enters"]


def test_an_error_inside_frees_it(tmp_path):
    with pytest.raises(ValueError, match="inside"), locked(tmp_path / ".lock", "write"):
        raise ValueError("inside")
    lock = claim(tmp_path / ".lock", "write")
    assert lock is not None
    lock.release()


def test_nowhere_to_write(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="cannot write the world: "),
        locked(tmp_path / "file" / ".lock", "write the world"),
    ):
        pass


def test_no_waiting_and_a_child_that_holds_it_on(tmp_path):
    path = tmp_path / "deep" / "lock"
    first = try_lock(path, "work")
    assert first is not None
    assert try_lock(path, "work") is None
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(first.fileno(),))
    first.close()
    assert try_lock(path, "work") is None, "the child has it still"
    child.stdin.close()
    child.wait()
    last = try_lock(path, "work")
    assert last is not None
    last.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot work in x: "):
        try_lock(tmp_path / "file" / "lock", "work in x")


HOLDER = """
import os, sys, time
from pathlib import Path
from storage.lock import claim
held = claim(Path(sys.argv[1]), "work")
assert held
if os.fork() == 0:
    print("the child is there", flush=True)
    time.sleep(10)
time.sleep(60)
"""


def test_a_claim_ends_with_its_process(tmp_path):
    path = tmp_path / "deep" / "lock"
    claim(path, "work").release()
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    other.stdout.readline()
    assert claim(path, "work") is None
    other.send_signal(signal.SIGKILL)
    other.wait()
    held = claim(path, "work")
    assert held is not None, "the child has no part in it"
    held.release()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot work in x: "):
        claim(tmp_path / "file" / "lock", "work in x")


def test_removing_the_lock_file_lets_no_two_in(tmp_path):
    """As a run does at its end: who opened the file before holds nothing by holding that."""
    path = tmp_path / "lock"
    first = claim(path, "work")
    path.unlink()
    second = claim(path, "work")
    assert second is not None
    first.release()
    assert claim(path, "work") is None
    second.release()
