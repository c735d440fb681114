"""What many tests share: the reference models with their batches, and the mini world in a cache of its own."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core a worker, and for the commands it starts, too

import io
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from studies.process import Process

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs like that, and the processes that tests start and interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent
REFERENCE = Path(__file__).parent / "reference"


def on_meta(name: str) -> torch.nn.Module:
    """A model of one of FAMILIES as its shipped configuration has it, without memory for its tensors."""
    from configs.schema import parse
    from models import FAMILIES, read_config

    settings, where = read_config(name, None)
    model_class = FAMILIES[settings.pop("family", name)]
    sizes = {key: value for key, value in settings.items() if key not in ("weights", "tokenizer")}
    with torch.device("meta"):
        return model_class(parse(model_class.Config, sizes, where))


def reference_batches(model: str, count: int) -> list[dict[str, dict[str, torch.Tensor]]]:
    """The first `count` general and region batches of the reference vectors."""
    tensors = load_file(REFERENCE / "vectors" / model / "batches.safetensors")

    def batch(side: str, i: int) -> dict[str, torch.Tensor]:
        start = f"{side}.{i}."
        return {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}

    return [{side: batch(side, i) for side in ("general", "region")} for i in range(count)]


@pytest.fixture(scope="session")
def xvlm():
    """The reference X-VLM with the published class's random weights. Tests must leave it as it was."""
    from models import load_model

    weights = REFERENCE / "vectors" / "xvlm" / "weights.safetensors"
    return load_model("xvlm", config=REFERENCE / "xvlm.yaml", weights=weights)


@pytest.fixture(scope="session")
def xvlm_batches():
    """Four steps of general and region batches for the reference X-VLM."""
    return reference_batches("xvlm", 4)


@pytest.fixture
def hardest_negatives(monkeypatch):
    """Hard negatives by argmax, as in the reference vectors, instead of a draw."""
    monkeypatch.setattr(torch, "multinomial", lambda weights, n: weights.argmax(-1, keepdim=True))


def started(*arguments: object, cwd: Path = REPOSITORY, **environment: str):
    """Start a command of the toolkit, forked from a process that has the libraries already, as a grid does.

    Returns its Process, and a function that returns its output and errors once it has ended.
    """
    streams = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 (closed with the last reference)
    command = [sys.executable, *map(str, arguments)]
    everything = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    process = Process(command, everything, *(stream.fileno() for stream in streams), folder=cwd)

    def said() -> tuple[str, str]:
        assert process.returncode is not None, "it runs"
        for stream in streams:
            stream.seek(0)
        return tuple(stream.read() for stream in streams)

    return process, said


def ended(processes, timeout: float) -> list[subprocess.CompletedProcess]:
    """What is left of commands that `started` returned, after all have ended."""
    try:
        codes = [process.wait(timeout) for process, _ in processes]
        assert None not in codes, f"not ended after {timeout} seconds"
    finally:
        for process, _ in processes:
            process.send_signal(signal.SIGKILL)
    return [subprocess.CompletedProcess((), code, *said()) for code, (_, said) in zip(codes, processes, strict=True)]


@pytest.fixture
def run_process():
    """Run a command of the toolkit in a process of its own; returns the finished process."""

    def command(*arguments: object, timeout: float = 300, **others):
        return ended([started(*arguments, **others)], timeout)[0]

    return command


@pytest.fixture
def run_ranks():
    """The same in processes that work together, each told of the others as torchrun does; all their errors."""

    def command(*arguments: object, ranks: int = 2, timeout: float = 300, **environment: str):
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = str(listening.getsockname()[1])
        places = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
        places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
        environment = {"OMP_NUM_THREADS": "1"} | environment | places
        numbers = map(str, range(ranks))
        done = ended([started(*arguments, **environment, RANK=n, LOCAL_RANK=n) for n in numbers], timeout)
        code = next((one.returncode for one in done if one.returncode), 0)
        return subprocess.CompletedProcess(arguments, code, done[0].stdout, "".join(one.stderr for one in done))

    return command


@pytest.fixture
def run(monkeypatch):
    """The same in this process, which spares the seconds in which libraries are imported."""
    return runner(monkeypatch)


def runner(monkeypatch: pytest.MonkeyPatch):
    """What `run` gives, for fixtures that live longer than a test."""

    def command(*arguments: str, cwd: Path = REPOSITORY, **environment: str):
        script, *rest = map(str, arguments)
        out, err, code = io.StringIO(), io.StringIO(), 0
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        threads = torch.get_num_threads()
        try:
            with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
                patch.chdir(cwd)
                for name, value in environment.items():
                    patch.setenv(name, value)
                if script == "-m":
                    patch.setattr(sys, "argv", ["-m", *rest[1:]])
                    runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
                else:
                    patch.setattr(sys, "argv", [script, *rest])
                    runpy.run_path(str(Path(cwd) / script), run_name="__main__")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        finally:
            torch.set_num_threads(threads)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    return command
