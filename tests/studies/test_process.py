"""Commands in forked processes: what they see, how they end, what they hold, and what they do not import again."""

import os
import signal
import subprocess
import sys

import pytest

from storage.lock import try_lock
from studies.process import MOST, Process, _server
from studies.version import REPOSITORY

SCRIPT = """
import os, sys
print("torch" in sys.modules, "prune" in sys.modules, __name__, sys.argv)
import helper, torch
print(helper.WORD, torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("LEFT"), os.getcwd())
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def start(tmp_path):
    """Start a command whose output and errors are in tmp_path / 'said'."""

    def command(*words, keep=(), **environment):
        with (tmp_path / "said").open("ab") as said:
            number = said.fileno()
            return Process(words, os.environ | environment, number, number, keep, tmp_path)

    return command


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere commands are not run in forked processes")
def test_a_script_finds_the_libraries_there(start, tmp_path):
    """And all else as in a process of its own: arguments, environment, folder, modules beside it, exit code."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "helper.py").write_text("WORD = 'helped'")
    start("true", OMP_NUM_THREADS="3", LEFT="over").wait(60)  # the process that forks starts with it
    process = start(sys.executable, "script.py", "3", OMP_NUM_THREADS="3")
    assert process.wait(120) == 3
    first, second = (tmp_path / "said").read_text().splitlines()
    assert first == "True False __main__ ['script.py', '3']"
    assert second == f"helped 3 3 None {tmp_path}"
    again = start(sys.executable, "-m", "script", "0", OMP_NUM_THREADS="3")
    assert (again.wait(120), again.cpu_seconds < 2) == (0, True), "importing torch takes longer"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("sh", "-c", "echo said; exit 7"), 7),
        (("sh", "-c", "kill -9 $$"), -signal.SIGKILL),
        ((sys.executable, "-c", "raise KeyboardInterrupt"), -signal.SIGINT),
        ((sys.executable, "-c", "import os; os.abort()"), -signal.SIGABRT),
        (("no such program",), 1),
    ],
)
def test_exit_codes(words, code, start):
    assert start(*words).wait(60) == code


def test_cost_and_signals(start):
    busy = start(sys.executable, "-c", "x = bytearray(200_000_000)\nwhile True: pass")
    assert busy.poll() is None and busy.wait(1.0) is None
    busy.send_signal(signal.SIGTERM)
    assert busy.wait(60) == -signal.SIGTERM
    assert 0.1 < busy.cpu_seconds < 60 and busy.peak_memory_gb > 0.19
    busy.send_signal(signal.SIGTERM)  # of an ended one: nothing


def test_the_runner_s_errors_are_closed_with_it(tmp_path):
    """While its run goes on: a pipe behind a killed runner must not wait for the run."""
    program = """
import os, sys
from studies.process import Process
with open(os.devnull, "w") as nothing:
    print(Process(["sleep", "60"], os.environ, nothing.fileno(), nothing.fileno()).pid)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    os.kill(int(done.stdout), signal.SIGKILL)


def test_many_locks_are_held_until_it_ends(start, tmp_path):
    """More than one message can carry; the caller's own files are closed, as when a runner is killed."""
    paths = [tmp_path / f"{number}.lock" for number in range(MOST + 10)]
    locks = [try_lock(path, "test") for path in paths]
    process = start("sleep", "60", keep=[lock.fileno() for lock in locks])
    for lock in locks:
        lock.close()
    assert [try_lock(path, "test") for path in (paths[0], paths[-1])] == [None, None]
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    for path in paths:
        lock = try_lock(path, "test")
        assert lock is not None
        lock.close()


def test_one_that_forks_and_is_gone_is_replaced(start):
    assert start("true").wait(60) == 0
    channel, forking = _server(os.environ)
    forking.kill()
    forking.wait()
    assert start("true").wait(60) == 0
    assert _server(os.environ)[0] is not channel
