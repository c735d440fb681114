"""Runs forked from a process with the libraries loaded: as if they had begun from nothing, whoever is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grid.execute import environment
from grid.forked import POSSIBLE, Forks
from grid.processes import Spawned
from grid.version import REPOSITORY
from storage.hashing import hash_file
from storage.lock import try_lock

pytestmark = pytest.mark.skipif(not POSSIBLE, reason="only Linux forks runs")

ABOUT = """
import atexit, json, os, sys
print("to the log")
print("and errors, too", file=sys.stderr)
facts = {"loaded": "torch" in sys.modules, "arguments": sys.argv, "name": __name__, "folder": os.getcwd()}
facts |= {"session": os.getsid(0) == os.getpid(), "word": os.environ.get("WORD"), "input": sys.stdin.read()}
facts |= {"threads": os.environ["OMP_NUM_THREADS"], "spec": sys.modules["__main__"].__spec__ is None}
open(sys.argv[1], "w").write(json.dumps(facts))
atexit.register(lambda: open(sys.argv[1] + ".end", "w").close())
if len(sys.argv) > 2:
    exec(sys.argv[2])
"""


@pytest.fixture
def forks():
    """With nothing loaded but what finding GPUs takes."""
    opened = Forks(("json",))
    yield opened
    opened.close()


@pytest.fixture
def begin(tmp_path):
    """Start the script above: its process, its lock, and the file that it writes."""
    script = tmp_path / "about.py"
    script.write_text(ABOUT)
    count = iter(range(100))

    def start(starter, then=""):
        number = next(count)
        lock = try_lock(tmp_path / f"{number}.lock", "test")
        out = tmp_path / f"{number}.json"
        command = [sys.executable, str(script), str(out), *filter(None, [then])]
        variables = {**environment(1), "WORD": f"run {number}"}
        return starter(command, tmp_path / f"{number}.log", lock, variables), lock, out

    return start


def end_of(process, seconds=120):
    until = time.monotonic() + seconds
    while (ended := process.poll()) is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    return ended


def wait_for(path, seconds=120):
    until = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return json.loads(path.read_text())


def is_free(tmp_path, number):
    lock = try_lock(tmp_path / f"{number}.lock", "test")
    if lock is not None:
        lock.close()
    return lock is not None


def test_a_fork_is_as_a_new_process(forks, begin, tmp_path):
    spawned, _, one = begin(Spawned)
    forked, _, other = begin(forks.start)
    assert end_of(spawned).code == end_of(forked).code == 0
    plain, fork = json.loads(one.read_text()), json.loads(other.read_text())
    assert (plain.pop("loaded"), fork.pop("loaded")) == (False, True)
    assert (plain.pop("word"), fork.pop("word")) == ("run 0", "run 1")
    assert plain.pop("arguments")[1:] == [str(one)]
    assert fork.pop("arguments")[1:] == [str(other)]
    assert plain == fork
    assert (tmp_path / "0.log").read_text() == (tmp_path / "1.log").read_text() == "to the log\nand errors, too\n"
    assert (tmp_path / "1.json.end").is_file(), "what libraries do at exit is done"


def test_how_a_fork_ends(forks, begin, tmp_path):
    work = "list(range(3_000_000)); import time; [None for _ in iter(lambda: time.process_time() > 0.3, True)]"
    codes = ("sys.exit(3)", "sys.exit('no')", "1 / 0", "os.kill(os.getpid(), 9)", work)
    ends = [end_of(begin(forks.start, then)[0]) for then in codes]
    assert [ended.code for ended in ends] == [3, 1, 1, -9, 0]
    assert (tmp_path / "1.log").read_text().splitlines()[-1] == "no"
    assert (tmp_path / "2.log").read_text().splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert 0.2 < ends[-1].cpu_seconds < 30
    assert 0.01 < ends[-1].peak_memory_gb < 10


def test_a_signal_reaches_the_run(forks, begin):
    process, _, out = begin(forks.start, "import time; time.sleep(60)")
    wait_for(out)
    process.send(signal.SIGTERM)
    assert end_of(process, 30).code == -signal.SIGTERM
    process.send(signal.SIGTERM)


def test_other_programs_are_started_as_they_are(forks, tmp_path):
    lock = try_lock(tmp_path / "lock", "test")
    process = forks.start(["sh", "-c", "exit 4"], tmp_path / "log", lock, environment(1))
    assert isinstance(process, Spawned)
    assert end_of(process).code == 4


def test_forks_outlive_their_server_and_keep_their_locks(forks, begin, tmp_path):
    process, lock, out = begin(forks.start, "import time; time.sleep(3)")
    lock.close()
    wait_for(out)
    os.kill(forks._server.pid, signal.SIGKILL)
    later, _, other = begin(forks.start)
    assert not is_free(tmp_path, 0)
    assert end_of(later).code == 0, "from nothing, now"
    assert wait_for(other)["loaded"] is False
    assert end_of(process).code == 1, "nobody saw how it ended"
    assert is_free(tmp_path, 0)


def test_a_server_that_cannot_load_is_done_without(begin):
    forks = Forks(("no_such_module",))
    process, _, out = begin(forks.start)
    assert end_of(process).code == 0
    assert wait_for(out)["loaded"] is False
    forks.close()


def test_masks_and_weights_are_the_same_bit_for_bit(tmp_path):
    """Pruning and two steps of finetuning, in processes that begin from nothing and in forks."""
    forks = Forks()
    hashes = []
    for name, start in (("spawned", Spawned), ("forked", forks.start)):
        folder = tmp_path / name
        folder.mkdir()
        mask = folder / "omp" / "dino-mini_omp_75_seed0.safetensors"
        prune = [
            "prune.py",
            "--model",
            "dino-mini",
            "--pruner",
            "omp",
            "-s",
            "75",
            "--seed",
            "0",
            "--output_dir",
            folder,
        ]
        tune = ["image_classification.py", "--model", "dino-mini", "--mask", mask, "--seed", "0", "--debug"]
        for arguments in (prune, [*tune, "--output_dir", folder / "run"]):
            lock = try_lock(folder / f"{arguments[0]}.lock", "test")
            script, *rest = [*map(str, arguments), "--accelerator", "cpu"]
            command = [sys.executable, str(REPOSITORY / script), *rest]
            assert end_of(start(command, folder / "log", lock, environment(1)), 300).code == 0, (
                folder / "log"
            ).read_text()
        hashes.append([hash_file(mask), hash_file(folder / "run_debug" / "last.safetensors")])
    forks.close()
    assert hashes[0] == hashes[1]


def test_the_server_ends_with_its_runner(tmp_path):
    text = (
        "import sys, time\nfrom pathlib import Path\n"
        "from grid.execute import environment\nfrom grid.forked import Forks\n"
        "forks = Forks(('json',))\nlock = open('lock', 'w')\n"
        "run = forks.start([sys.executable, '-m', 'this'], Path('log'), lock, environment(1))\n"
        "while run.poll() is None: time.sleep(0.02)\nprint(forks._server.pid, flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-c", text]
    runner = subprocess.Popen(command, cwd=tmp_path, env=environment(1), stdout=subprocess.PIPE, text=True)
    pid = int(runner.stdout.readline())
    assert "Zen of Python" in (tmp_path / "log").read_text()
    runner.kill()
    runner.wait()
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":  # ended, and nobody has asked how
            return
        time.sleep(0.05)
    raise AssertionError("the server goes on")
