"""Training images that cannot be read: a few are replaced by others, with a notice."""

from __future__ import annotations

from pathlib import Path

from console.errors import InputError
from console.progress import console
from console.words import counted, place_of
from data.images import image_files
from data.sources import Source

MOST = 0.05
"""Largest share of the image files that may be missing."""

NAMED = 3


def missing_images(source: Source) -> str:
    """Notice on missing image files, before training; empty if there are none.

    InputError when they are more than `MOST` of all.
    """
    files = dict.fromkeys(file for i in range(len(source)) for file in image_files(source.file(i)))
    missing = [file for file in files if not Path(file).is_file()]
    absent = f"{counted(len(missing), 'training image', 'is', of=len(files))} missing"
    if len(missing) > MOST * len(files):
        raise InputError(
            f"{absent}, more than {MOST:.0%} (first: {missing[0]}): fix the image folder, or remove the records of "
            "missing images from the annotations"
        )
    return f"{absent} (first: {missing[0]}); another takes {place_of(len(missing))}" if missing else ""


class Replaced:
    """Images that this process could not read: the first ones are named at once, all are counted."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def note(self, failed: list[str]) -> None:
        """Add the images that a batch could not read."""
        for name in failed:
            if name not in self._names and len(self._names) < NAMED:
                console.print(f"cannot be read, another image takes its place: {name}")
            self._names.add(name)

    def summary(self) -> str:
        """Notice at the end with their number; empty if there were none."""
        number = len(self._names)
        lost = counted(number, "training image")
        return f"{lost} could not be read; another took {place_of(number)}" if number else ""
