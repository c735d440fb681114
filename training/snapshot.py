"""Everything a run needs to go on as if it had never stopped, in one file, written whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from console.errors import InputError
from storage.atomic import atomic_path
from storage.tensors import read_tensors


def save_snapshot(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, step: int, identity: dict[str, Any]
) -> None:
    """Write weights, optimizer state and step count; random states are functions of the step."""
    content = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "identity": identity,
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_snapshot(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]) -> int:
    """Restore a snapshot of the same run and return its step; InputError names the first difference otherwise."""
    content = read_tensors(path)
    if not isinstance(content, dict) or not {"model", "optimizer", "step", "identity"} <= set(content):
        raise InputError(f"{path} is no snapshot of a training run")
    for key in {**content["identity"], **identity}:
        then, now = content["identity"].get(key), identity.get(key)
        if then != now:
            raise InputError(
                f"{path} is a snapshot of another run ({key} was {then!r}, now it is {now!r}): "
                "choose another output folder, or the same options"
            )
    module.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return content["step"]
