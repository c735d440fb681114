"""The numbers of every epoch, and the weights of the best and the last one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruners.mask import Mask
from storage.log import append_json_line, keep_json_lines
from storage.tensors import read_safetensors, write_safetensors

Metrics = dict[str, Any]


def keep_epoch(folder: Path, epoch: int, found: Metrics, model: nn.Module, decides: str | None) -> None:
    """Log an epoch's numbers, and keep its weights when they are the best so far."""
    log = folder / "epochs.jsonl"
    keep_json_lines(log, lambda line: line["epoch"] < epoch)  # a resumed run comes by here again
    before = read_epochs(folder)
    append_json_line(log, {"epoch": epoch, **found})
    if decides is not None and all(found[decides] > line[decides] for line in before):
        write_model(folder / "best.safetensors", model, epoch)


def write_model(path: Path, model: nn.Module, epoch: int, mask: Mask | None = None) -> None:
    """The state dict, each tied tensor once, with the number of the epoch it is of; mask: to go with it."""
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    masks, about = mask.inside_weights() if mask is not None else ({}, {})
    write_safetensors(path, untied(state) | masks, {"format": "pt", "epoch": str(epoch)} | about)


def read_epochs(folder: Path) -> list[Metrics]:
    """The numbers of the epochs so far."""
    log = folder / "epochs.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def load_best(folder: Path, model: nn.Module, decides: str | None) -> int | None:
    """Put the best epoch's weights into the model and return its number; None where the last one counts."""
    if decides is None:
        return None
    state, metadata = read_safetensors(folder / "best.safetensors")
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    return int(metadata["epoch"])


def untied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tied tensor once."""
    seen: set[int] = set()
    found = {}
    for name, tensor in state.items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            found[name] = tensor
    return found
