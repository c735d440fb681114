"""The terminal report of a pruning: a table of the masks, warnings, and the paths of the files."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from console.progress import console
from console.results import result_console
from console.words import counted, place_of, share_of_matrices
from pruners.outputs import Outputs
from sparsity.mask import Mask
from sparsity.percents import percent

IMPLIED = ("weight", "encoder", "layer", "layers", "blocks", "bert", "self")


def print_result(
    masks: dict[float, Mask], outputs: Outputs, seconds: dict[str, float], total: float, failed: list[str]
) -> None:
    """seconds: of the calibration and of cutting all masks; total: of the whole run."""
    screen = result_console()
    modalities = list(dict.fromkeys(m for mask in masks.values() for m in mask.layers_by_modality()))
    source = next(iter(masks.values())).source
    table = Table(
        title=f"{outputs.model} pruned by {outputs.label}, seed {outputs.seed}", caption=prunable_share(source)
    )
    for column in ("target", "reached", *modalities):
        table.add_column(column, justify="right")
    table.add_column("smallest layer (weights kept)")
    table.add_column("seconds", justify="right")
    for sparsity, mask in masks.items():
        by_modality = mask.sparsity_by_modality()
        smallest = min(mask, key=mask.kept)
        table.add_row(
            f"{percent(sparsity)} %",
            f"{100 * mask.sparsity():.3f} %",
            *(f"{100 * by_modality[m]:.2f} %" for m in modalities),
            f"{shorten(smallest)} ({mask.kept(smallest):,})",
            f"{seconds['masks'] / len(masks):.2f}",
        )
    screen.print(table)
    if failed:
        screen.print(
            f"{counted(len(failed), 'image')} could not be read; another took {place_of(len(failed))}: "
            + ", ".join(failed[:5])
            + (" ..." if len(failed) > 5 else "")
        )
    calibrated = f" ({seconds['calibration']:.1f} s of calibration)" if seconds["calibration"] > 0.05 else ""
    screen.print(f"{counted(len(masks), 'mask')} in {outputs.folder}/ after {total:.1f} s{calibrated}")
    screen.print(f"sparsity of every layer: {outputs.picture}")


def warn_of_collapses(masks: dict[float, Mask]) -> None:
    """Print a warning for each mask that prunes a modality or a layer whole."""
    for sparsity, mask in masks.items():
        for warning in collapses(mask):
            console.print(f"[yellow]warning:[/] at {percent(sparsity)} %, {warning}")


def collapses(mask: Mask) -> list[str]:
    """Sentences naming modalities and layers that are pruned whole."""
    warnings, named = [], set()
    for modality, names in mask.layers_by_modality().items():
        if not any(mask.kept(name) for name in names):
            warnings.append(f"no weight of the {modality} modality is kept")
            named |= set(names)
    empty = [name for name in mask if mask.kept(name) == 0 and name not in named]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        warnings.append(f"no weight is kept in {counted(len(empty), 'layer')}: {', '.join(empty[:5])}{more}")
    return warnings


def prunable_share(source: dict[str, Any]) -> str | None:
    """The number of prunable weights, which 100 % refers to; None if the mask's file does not say."""
    prunable, whole = source.get("prunable_weights"), source.get("weights_in_matrices")
    if not prunable or not whole:
        return None
    return f"percent of {share_of_matrices(prunable, whole)}"


def shorten(name: str) -> str:
    """A parameter name without its uninformative levels."""
    return ".".join(part for part in name.split(".") if part not in IMPLIED)
