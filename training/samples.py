"""samples.png: a contact sheet of test images with what the finetuned model says of them, beside a run's results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from console.errors import InputError
from console.progress import console
from evaluation.contact_sheet import draw_contact_sheet

if TYPE_CHECKING:
    from training.task import Task

IMAGES, TEXTS = 12, 6
"""How many samples a sheet shows: images, and texts with the images found for them."""


def draw_samples(task: Task, path: Path, title: str) -> None:
    """Draw what `task.samples()` gives, after the test evaluation; nothing where that is nothing.

    A run that has its results does not fail for want of a picture: what was in the way is said instead.
    """
    try:
        if not (parts := task.samples()):
            return
        draw_contact_sheet(title, parts, path)
    except (InputError, OSError, ImportError, ValueError) as error:  # no disk space, no font, no matplotlib, odd data
        console.print(f"{path} could not be drawn ({error}); the results are not touched by that")
    else:
        console.print(f"samples: {path}")
