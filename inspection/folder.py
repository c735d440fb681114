"""Check that a Hugging Face folder is zero where a mask prunes, also after another tool finetuned or quantised it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from console.errors import InputError
from console.words import counted
from models.library.hf_streaming import tensors_in
from sparsity.mask import Mask


class Zeros(NamedTuple):
    """Of a layer: weights that the mask prunes, how many of them are nonzero, and why it could not be checked."""

    pruned: int
    back: int
    reason: str = ""


def check_zeros(folder: Path, mask: Mask) -> dict[str, Zeros]:
    """Compare each layer of the mask with the folder's tensor of its name.

    Integers and 8-bit floats are compared as stored, since quantisation without an offset keeps zeros.
    InputError if the folder has none of the layers.
    """
    tensors = tensors_in(folder)
    if not any(name in tensors for name in mask):
        raise InputError(f"{folder} has none of the mask's {counted(len(mask), 'layer')}: give the mask of this model")
    found = {}
    for name in mask:
        pruned = mask.size(name) - mask.kept(name)
        tensor = tensors.get(name)
        if tensor is None:
            found[name] = Zeros(pruned, 0, "there is no tensor of this name")
        elif tuple(tensor.shape) != mask.shape(name):
            found[name] = Zeros(pruned, 0, f"its shape is {tuple(tensor.shape)}, and {mask.shape(name)} in the mask")
        else:
            numbers = tensor if tensor.dtype.is_floating_point and tensor.dtype.itemsize > 1 else tensor.float()
            found[name] = Zeros(pruned, int(torch.count_nonzero(numbers[~mask[name]])))
    return found


def show_zeros(screen: Console, folder: Path, mask: Mask, found: dict[str, Zeros]) -> bool:
    """Print a table by modality, and errors; returns whether every pruned weight is zero."""
    table = Table(title=f"zeros in {folder}")
    for column in ("", "layers", "pruned", "zeros", "nonzero"):
        table.add_column(column, justify="right" if column else "left")
    for modality, names in mask.layers_by_modality().items():
        of = [found[name] for name in names if not found[name].reason]
        pruned, back = sum(one.pruned for one in of), sum(one.back for one in of)
        table.add_row(modality, f"{len(of):,}", f"{pruned:,}", f"{pruned - back:,}", f"{back:,}")
    screen.print(table)
    unread = {name: one.reason for name, one in found.items() if one.reason}
    back = {name: one.back for name, one in found.items() if one.back}
    if unread:
        first = next(iter(unread))
        screen.print(f"{counted(len(unread), 'layer')} could not be checked (first: {first}: {unread[first]})")
    if back:
        worst = max(back, key=lambda name: back[name])
        total = sum(back.values())
        layers = counted(len(back), "layer")
        screen.print(f"{total:,} pruned weights of {layers} are nonzero (most: {worst}, {back[worst]:,})")
    if not unread and not back:
        screen.print("every weight that the mask prunes is zero")
    return not unread and not back
