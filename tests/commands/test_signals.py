"""What a command ends with when it is told to: SIGTERM 143, Ctrl-C 130, as real signals to real processes."""

import contextlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

COMMANDS = {
    "prune": ("prune.py", "--model", "xvlm-mini", "--pruner", "omp"),
    "finetune": ("retrieval.py", "--model", "xvlm-mini", "--dense"),
    "pretrain": ("pretrain.py", "--model", "xvlm-mini"),
    "efficiency": ("-m", "evaluation.efficiency", "--model", "xvlm-mini"),
    "check": ("-m", "models.check", "xvlm-mini"),
    "grid": ("experiments.py", "plan", "configs/experiments/mini.yaml"),
}


def listens(process):
    """Whether the process has a handler of its own for SIGTERM, as the system says."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = int(re.search(r"SigCgt:\s+([0-9a-f]+)", status)[1], 16)
        return bool(caught & 1 << (signal.SIGTERM - 1))
    return False


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_exit_codes_of_signals(command, number, tmp_path):
    folder = ["--output_dir", str(tmp_path / "out")] if command in ("prune", "finetune", "pretrain") else []
    process = subprocess.Popen(
        [sys.executable, *COMMANDS[command], *folder], cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not listens(process):
        assert time.monotonic() < until
        time.sleep(0.001)
    process.send_signal(number)
    error = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 128 + number, error
    assert error.splitlines()[-1] == "interrupted"
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_forked_worker_ends_as_its_command_wants():
    """A pool ends its workers with SIGTERM: they die of it and print nothing."""
    program = """
import multiprocessing, os, signal, time
from console.errors import run_command
def main():
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    worker.start()
    time.sleep(0.3)
    worker.terminate()
    worker.join(20)
    print(worker.exitcode)
run_command(main)"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("-15\n", "")
