"""Records of a finetuning run: config.yaml before training, results.json at the end."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from data.records import read_json
from storage.atomic import write_text
from training.logging_wandb import flat
from training.snapshot import refuse_another_run

LIBRARIES = ("torch", "torchvision", "transformers", "timm", "lightning")
REPOSITORY = Path(__file__).parent.parent


def write_settings(path: Path, config: Any, dataset: str = "", **effective: Any) -> None:
    """Write the configuration (a dataclass with the command line's overrides), which `--config` reads.

    dataset: of a task that chooses one of several, its name. effective: fields to replace, for example seed.
    """
    settings = dataclasses.asdict(dataclasses.replace(config, **effective))
    if dataset:
        settings["datasets"] = {dataset: {split: settings.pop(split) for split in ("train", "test")}}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=120)
    about = "The configuration with the command line's overrides; the mask and --prune are in the command"
    write_text(path, f"# {about}:\n#   {command_line()}\n{text}")


def command_line() -> str:
    """The command line, quoted for a shell, on one line."""
    return shlex.join(["python", *sys.argv]).replace("\n", " ")


def metrics_line(metrics: Mapping[str, Any]) -> str:
    """Metrics that are numbers, in one line: 'r_mean 80.31, itc/r_mean 72.3'."""
    numbers = {name: value for name, value in flat(metrics).items() if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def refuse_finished(path: Path, identity: dict[str, Any]) -> None:
    """InputError naming the first difference if the results file `path` belongs to another run."""
    if path.is_file():
        found = read_json(path)
        if isinstance(found, dict) and isinstance(found.get("run"), dict):
            refuse_another_run(path, found["run"], identity)


def versions() -> dict[str, str | None]:
    """Versions of the project (its commit), Python and the libraries that affect results; None if unknown."""
    found: dict[str, str | None] = {"commit": commit(), "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit(repository: Path = REPOSITORY) -> str | None:
    """The git commit that runs, with `-dirty` where tracked files were changed since; None outside of a checkout."""
    top, dirty = _git(repository, "rev-parse", "--show-toplevel", "HEAD"), ""
    if top is None or Path(top[0]).resolve() != repository.resolve():  # installed inside another project's checkout
        return None
    if _git(repository, "status", "--porcelain", "--untracked-files=no"):
        dirty = "-dirty"
    return top[1] + dirty


def _git(folder: Path, *words: str) -> list[str] | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, no commit yet
        return None
    return done.stdout.splitlines()


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() if device.type == "cpu" else f"{device.type} ({_processor()})"


def _processor() -> str:
    """The processor's name from Linux's own table, else what Python knows of it."""
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
