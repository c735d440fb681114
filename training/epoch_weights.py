"""Metrics of every epoch, and the weights of the best and the last epoch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from console.errors import InputError
from console.words import counted
from models.common.checkpoint import MASK_SUFFIX
from sparsity.mask import Mask
from storage.atomic import atomic_path, write_text
from storage.log import append_json_line, keep_json_lines, read_json_lines
from storage.tensors import read_metadata, read_safetensors, write_safetensors

Metrics = dict[str, Any]

BEST = "best.safetensors"


def keep_epoch(
    folder: Path,
    epoch: int,
    found: Metrics,
    model: nn.Module,
    decides: str | None,
    mask: Mask | None = None,
    settled: bool = True,
) -> None:
    """Log an epoch's metrics, and save its weights if they are the best so far.

    mask: of these weights, if the run makes it. settled: whether pruning has ended, so that they may be the best.
    """
    log = folder / "epochs.jsonl"
    keep_json_lines(log, lambda line: line["epoch"] < epoch)  # a resumed run may repeat this epoch
    append_json_line(log, {"epoch": epoch, **found} | ({} if settled else {"settled": False}))
    if decides is not None and best_epoch(read_epochs(folder), decides) == epoch:
        write_model(folder / BEST, model, epoch, mask)


def write_model(path: Path, model: nn.Module, epoch: int, mask: Mask | None = None) -> None:
    """Save the state dict, each tied tensor once, with its epoch and its mask, if any."""
    names: dict[torch.Tensor, str] = {}  # tensor -> its first name
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(tensor, name)
    state = {name: tensor.detach().contiguous() for tensor, name in names.items()}
    masks, about = mask.inside_weights() if mask is not None else ({}, {})
    write_safetensors(path, state | masks, {"format": "pt", "epoch": str(epoch)} | about)


def read_epochs(folder: Path) -> list[Metrics]:
    """The metrics of the epochs so far."""
    return read_json_lines(folder / "epochs.jsonl")


def best_epoch(lines: list[Metrics], decides: str) -> int | None:
    """The epoch whose weights `keep_epoch` keeps: the first of the best; None if none was evaluated."""
    looked = [line for line in lines if decides in line and line.get("settled", True)]
    return max(looked, key=lambda line: line[decides])["epoch"] if looked else None


def check_epochs(snapshot: Path, epochs: int, decides: str | None) -> None:
    """InputError unless the snapshot's folder has the metrics of its first `epochs` epochs and their best weights.

    Weights of later epochs will be computed again.
    """
    if decides is None or not epochs:
        return
    lines = [line for line in read_epochs(snapshot.parent) if line["epoch"] <= epochs]
    way_out = "restore the run's file, or start again without the snapshot"
    if len(lines) < epochs:
        raise InputError(
            f"{snapshot} follows {counted(epochs, 'epoch')}, but epochs.jsonl next to it has {len(lines)}: {way_out}"
        )
    weights, best = snapshot.with_name(BEST), best_epoch(lines, decides)
    if best is None:
        return
    if not weights.is_file():
        raise InputError(
            f"{weights} is missing, the weights of epoch {best}, the best one before {snapshot}: {way_out}"
        )
    kept = int(read_metadata(weights).get("epoch", 0))
    if kept != best and kept <= epochs:
        raise InputError(f"{weights} is of epoch {kept}, but the best one before {snapshot} is {best}: {way_out}")


def copy_epochs(source: Path, folder: Path, epochs: int) -> None:
    """Copy the results of the first `epochs` epochs from `source` to `folder`: their metrics, and the best weights."""
    if source.resolve() == folder.resolve() or not epochs:
        return
    lines = [json.dumps(line) + "\n" for line in read_epochs(source) if line["epoch"] <= epochs]
    if lines:
        write_text(folder / "epochs.jsonl", "".join(lines))
    if (source / BEST).is_file():
        with atomic_path(folder / BEST) as temporary:
            shutil.copyfile(source / BEST, temporary)


def load_best(folder: Path, model: nn.Module, decides: str | None) -> int | None:
    """Load the best epoch's weights into the model and return its number; None if the last epoch counts."""
    if decides is None:
        return None
    state, metadata = read_safetensors(folder / BEST)
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if not name.endswith(MASK_SUFFIX):
                own[name].copy_(tensor)
    return int(metadata["epoch"])
