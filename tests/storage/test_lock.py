"""The lock: one holder at a time, who waits is told for whom, and it ends with its holder."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from console.errors import InputError
from storage.lock import claim, locked, release, try_lock


def test_one_after_the_other(tmp_path):
    path, events, inside = tmp_path / "deep" / ".lock", [], threading.Event()

    def first():
        with locked(path, "write"):
            inside.set()
            while not events:
                time.sleep(0.005)
            events.append("first leaves")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)

    def waiting(holder):
        events.append("waits")
        assert holder == str(os.getpid())

    with locked(path, "write", waiting):
        events.append("second enters")
    thread.join(10)
    assert events == ["waits", "first leaves", "second enters"]


def test_an_error_inside_frees_it(tmp_path):
    with pytest.raises(ValueError, match="inside"), locked(tmp_path / ".lock", "write"):
        raise ValueError("inside")
    with locked(tmp_path / ".lock", "write", lambda holder: pytest.fail("nobody holds it")):
        pass


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
if os.fork() == 0:
    time.sleep(10)
print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_a_claim_ends_with_its_process_even_where_a_child_lives_on(tmp_path):
    path = tmp_path / "deep" / "lock"
    held = claim(path, "work")
    release(path, held)
    assert not path.exists()
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    other.stdout.readline()
    assert claim(path, "work") == str(other.pid)
    other.send_signal(signal.SIGKILL)
    other.wait()
    held = claim(path, "work")
    assert not isinstance(held, str), "the child has no part in it"
    release(path, held)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot work in x: "):
        claim(tmp_path / "file" / "lock", "work in x")
