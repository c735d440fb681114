"""A picture of a pruning: how sparse every layer became, by modality."""

from __future__ import annotations

from pathlib import Path

from sparsity.mask import Mask
from storage.atomic import atomic_path

COLOURS = ("#3b6fb6", "#c2572b", "#4d8f4a", "#8a5aa8", "#b59a2d")  # told apart in print and by the colour-blind


def draw_layers(masks: dict[float, Mask], path: Path, title: str) -> None:
    """One row of bars a sparsity, one bar a layer in the model's order, one colour a modality (PNG)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(masks), 1, figsize=(11, 1.2 + 1.7 * len(masks)), sharex=True, squeeze=False)
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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
