"""Count the non-zero weights of a task model, independently of its mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import nn

from console.results import result_console
from console.words import share_of_matrices
from models.layers import weights_in_matrices


class Count(NamedTuple):
    """Weights that are not exactly zero, and all of them."""

    kept: int
    of: int

    def __str__(self) -> str:
        return f"{self.kept:,} ({100 * self.kept / max(1, self.of):.2f} %)"


@torch.no_grad()
def count_kept(model: nn.Module) -> dict[str, Count]:
    """Modality -> weights of its prunable layers that are not zero, in the order of the model."""
    found: dict[str, Count] = {}
    for name, layer in model.prunable_layers().items():
        kept, of = found.get(model.modality_of(name), Count(0, 0))
        more = int(layer.weight.count_nonzero())
        found[model.modality_of(name)] = Count(kept + more, of + layer.weight.numel())
    return found


def in_all(counts: Mapping[str, Count]) -> Count:
    """The sum over modalities."""
    return Count(sum(count.kept for count in counts.values()), sum(count.of for count in counts.values()))


def as_json(counts: Mapping[str, Count]) -> dict[str, Any]:
    """The counts as results.json holds them: `all` and `by_modality`, each {kept, of, share}."""

    def entry(count: Count) -> dict[str, Any]:
        return {"kept": count.kept, "of": count.of, "share": round(count.kept / max(1, count.of), 6)}

    return {"all": entry(in_all(counts)), "by_modality": {name: entry(count) for name, count in counts.items()}}


def show_kept(moments: Mapping[str, Mapping[str, Count]], model: nn.Module) -> None:
    """Print a table: a row a modality, a column a moment, such as `after loading the mask`."""
    table = Table(title="weights kept, of the prunable ones", caption=share_of_matrices(*weights_in_matrices(model)))
    table.add_column("modality")
    table.add_column("prunable", justify="right")
    for moment in moments:
        table.add_column(moment, justify="right")
    columns = [{**counts, "all": in_all(counts)} for counts in moments.values()]
    for modality in columns[0]:
        table.add_row(modality, f"{columns[0][modality].of:,}", *(str(counts[modality]) for counts in columns))
    result_console().print(table)
