"""A picture of a visual prompt: the frame by itself, and on pictures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from models.prompts import VisualPrompt
from sparsity.picture import save_picture


@torch.no_grad()
def draw_prompt(prompt: VisualPrompt, pictures: Sequence[Tensor], path: Path, title: str) -> None:
    """PNG: what is added to a picture (grey adds nothing), and pictures [3, i, i] in [0, 1] without and with it."""
    from matplotlib.figure import Figure

    prompt = copy.deepcopy(prompt).cpu().eval()
    frame = prompt.frame()
    largest = max(float(frame.abs().max()), 1e-6)
    shown = [(frame / largest / 2 + 0.5, f"added, ±{largest:.2g}")]
    for picture in pictures:
        for x, name in ((prompt.plain(picture[None]), "without"), (prompt(picture[None]), "with")):
            shown.append((x[0] * prompt.std + prompt.mean, name))
    figure = Figure(figsize=(1.7 * len(shown), 2.3), layout="constrained")
    axes = figure.subplots(1, len(shown))
    for axis, (image, name) in zip(axes, shown, strict=True):
        axis.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(name, fontsize=8)
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    save_picture(figure, path)
