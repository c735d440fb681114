"""A picture of how alike masks are: a heat map of the IoU of every pair."""

from __future__ import annotations

from pathlib import Path

from inspection.comparison import Comparison
from storage.atomic import atomic_path


def draw_heat_map(comparison: Comparison, path: Path) -> None:
    """One map overall and one a modality, IoU in percent in every cell (PNG)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    labels = [file.label for file in comparison.files]
    maps = {"all layers": comparison.layers}
    if len(comparison.modalities) > 1:
        maps |= comparison.modalities
    side = 1.2 + 0.55 * len(labels)
    longest = 0.075 * max(map(len, labels))
    figure, axes = plt.subplots(
        1, len(maps), figsize=(side * len(maps) + longest, side + longest + 0.3), squeeze=False, layout="constrained"
    )
    for axis, (title, names) in zip(axes[0], maps.items(), strict=True):
        square = comparison.matrix(names)
        square = [[square[min(i, j)][max(i, j)] for j in range(len(labels))] for i in range(len(labels))]
        image = axis.imshow(square, vmin=0, vmax=1, cmap="Blues")
        for i, row in enumerate(square):
            for j, value in enumerate(row):
                colour = "white" if value > 0.5 else "black"
                axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=9)
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=9)
        axis.set_yticks(range(len(labels)), labels if axis is axes[0, 0] else [], fontsize=9)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=list(axes[0]), shrink=0.8, pad=0.01)
    bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
    figure.suptitle("IoU of the weights kept, in percent", fontsize=12)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
