"""samples.png: a contact sheet of test images with the model's predictions, next to a run's results."""

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
    """Draw the result of `task.samples()` after the test evaluation; nothing if it is empty.

    A finished run must not fail because of a picture: an error is only reported.
    """
    try:
        if not (parts := task.samples()):
            return
        draw_contact_sheet(title, parts, path)
    except (InputError, OSError, ImportError, ValueError) as error:  # no disk space, no font, no matplotlib, odd data
        console.print(f"{path} could not be drawn ({error}); the results are not affected")
    else:
        console.print(f"samples: {path}")
