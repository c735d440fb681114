"""Pictures of a pruning: the sparsity of every layer, by modality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsity.mask import Mask
from storage.atomic import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#3b6fb6", "#c2572b", "#4d8f4a", "#8a5aa8", "#b59a2d")  # distinguishable in print and for the colour-blind

NAMED = 40
"""Layers whose names fit next to a picture's rows."""


def draw_layers(masks: dict[float, Mask], path: Path, title: str) -> None:
    """One row of bars a sparsity, one bar a layer in the model's order, one colour a modality (PNG)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 1.7 * len(masks)))
    axes = figure.subplots(len(masks), 1, sharex=True, squeeze=False)
    for axis, (sparsity, mask) in zip(axes[:, 0], masks.items(), strict=True):
        position = {name: i for i, name in enumerate(mask)}
        for colour, (modality, names) in zip(COLOURS * 9, mask.layers_by_modality().items(), strict=False):
            heights = [100 * mask.sparsity([name]) for name in names]
            label = f"{modality}: {100 * mask.sparsity(names):.1f} %"
            axis.bar([position[name] for name in names], heights, color=colour, width=0.85, label=label)
        axis.axhline(100 * sparsity, color="black", linewidth=0.8, linestyle=":")
        axis.set_ylim(0, 100)
        axis.set_yticks([0, 50, 100])
        axis.set_ylabel(f"{100 * sparsity:g} %", rotation=0, ha="right", va="center", fontsize=11)
        # above the bars, which fill the axis
        axis.legend(loc="lower right", bbox_to_anchor=(1, 0.97), fontsize=8, ncols=6, frameon=False)
        axis.margins(x=0.005)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("layers, in the order of the model")
    figure.suptitle(f"{title}: share of weights pruned in every layer", fontsize=12)
    figure.tight_layout()
    save_picture(figure, path)


def draw_progress(history: list[dict[str, Any]], mask: Mask, path: Path, title: str) -> None:
    """Draw how a run pruned (PNG): the density of each modality over the steps, and of every layer.

    history: `step`, `remaining` (overall, by the schedule) and `kept` by layer, as in `Progressive.history`; `begins`:
    the stage of the run that starts at this step.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not history:
        return
    if history[0]["step"] > 0:
        whole = dict.fromkeys(history[0]["kept"], 1.0)
        history = [{"step": 0, "remaining": 1.0, "kept": whole}, *history]
    steps = [point["step"] for point in history]
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[1, 1.3])
    share = [100 * point["remaining"] for point in history]
    above.step(steps, share, where="post", color="black", linestyle=":", label="all prunable weights")
    names = [name for name in mask if name in history[-1]["kept"]]
    for colour, (modality, layers) in zip(COLOURS * 9, mask.layers_by_modality().items(), strict=False):
        sizes = {name: mask.size(name) for name in layers if name in history[-1]["kept"]}
        if sizes:
            whole = sum(sizes.values())
            kept = [100 * sum(point["kept"][name] * size for name, size in sizes.items()) / whole for point in history]
            above.step(steps, kept, where="post", color=colour, label=modality)
    above.set(xlim=(0, steps[-1]), ylim=(0, 102), ylabel="% of weights kept")
    above.legend(fontsize=8, frameon=False, ncols=4)
    above.spines[["top", "right"]].set_visible(False)
    shares = [[100 * point["kept"][name] for name in names] for point in history]
    mesh = below.pcolormesh(
        [*steps, steps[-1] + 1], range(len(names) + 1), list(zip(*shares, strict=True)), vmin=0, vmax=100
    )
    below.set(xlim=(0, steps[-1]), xlabel="optimizer steps", ylabel="layers, in the model's order")
    below.invert_yaxis()
    if len(names) <= NAMED:
        below.set_yticks([i + 0.5 for i in range(len(names))], names, fontsize=5)
    else:
        below.yaxis.set_major_locator(MaxNLocator(integer=True))
    begins = {point["step"]: point["begins"] for point in history if "begins" in point}
    for step, stage in begins.items():
        above.text(step, 103, f" {stage}", fontsize=8)
    for axis in (above, below):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.vlines(list(begins), *axis.get_ylim(), color="black", linewidth=0.8)
    figure.colorbar(mesh, ax=below, label="% kept")
    figure.suptitle(title, fontsize=12)
    save_picture(figure, path)


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure (PNG), atomically."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
