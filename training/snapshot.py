"""Snapshots: everything that resuming a run bit for bit needs, in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric.plugins import Precision
from torch import nn

from configs.overrides import joined_keys
from console.errors import InputError
from storage.tensors import read_tensors, write_torch


class Stateful(Protocol):
    """A part of a run with a state that snapshots save."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save_snapshot(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    identity: dict[str, Any],
    precision: Precision,
    parts: Mapping[str, Stateful],
) -> None:
    """Write weights, the step, and the states of optimizer, precision (the loss scale), sparsifier and callbacks.

    Random states are not saved: they follow from the step.
    """
    content = {
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "identity": identity,
        "precision": precision.state_dict(),
        "parts": {name: state for name, part in parts.items() if (state := part.state_dict())},
    }
    write_torch(path, content)


def load_snapshot(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    precision: Precision,
    parts: Mapping[str, Stateful],
) -> int:
    """Restore a snapshot of the same run and return its step; InputError names the first difference otherwise."""
    content = read_tensors(path)
    if not isinstance(content, dict) or not {"model", "optimizer", "step", "identity"} <= set(content):
        raise InputError(f"{path} is not a snapshot of a training run: give the snapshot.pt of an output folder")
    refuse_another_run(path, content["identity"], identity)
    try:
        module.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        if scale := content.get("precision"):
            precision.load_state_dict(scale)
        for name, state in content.get("parts", {}).items():
            parts[name].load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:  # same run, but the model's configuration was edited
        raise InputError(
            f"{path} does not fit the model ({_last_line(error)}): choose another output folder, or restore the "
            "model's configuration"
        ) from error
    return content["step"]


def refuse_another_run(path: Path, then: dict[str, Any], now: dict[str, Any]) -> None:
    """InputError naming the first difference between the identity of the run that wrote `path` and this run's.

    A field that only one of them has is ignored while it is empty or False: options may change between versions.
    """
    before, after = joined_keys(then), joined_keys(now)
    for key in {**before, **after}:
        sides = [side[key] for side in (before, after) if key in side]
        unused = sides[0] is False or sides[0] in (None, "", [], {})
        if sides[0] != sides[-1] or (len(sides) == 1 and not unused):
            old, new = (repr(side[key]) if key in side else "not given" for side in (before, after))
            raise InputError(
                f"{path} belongs to another run ({key} was {old}, now it is {new}): choose another output folder, or "
                "the same options; --snapshot needs a snapshot of the same run"
            )


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip().rstrip(".")
