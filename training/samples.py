"""samples.png: a contact sheet of test images with what the finetuned model says of them, beside a run's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from console.errors import InputError
from console.progress import console
from evaluation.contact_sheet import draw_contact_sheet

IMAGES, TEXTS = 12, 6
"""How many samples a sheet shows: images, and texts with the images found for them."""


def draw_samples(task: Any, path: Path, title: str) -> None:
    """Draw what `task.samples()` gives, after the test evaluation; nothing for a task without it.

    A run that has its results does not fail for want of a picture: what was in the way is said instead.
    """
    samples = getattr(task, "samples", None)
    if samples is None:
        return
    try:
        draw_contact_sheet(title, samples(), path)
    except (InputError, OSError, ImportError, ValueError) as error:  # no disk space, no font, no matplotlib, odd data
        console.print(f"{path} could not be drawn ({error}); the results are not touched by that")
    else:
        console.print(f"samples: {path}")
