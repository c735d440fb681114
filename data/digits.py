"""Write scikit-learn's handwritten digits as class folders: 1,797 real pictures of 8x8 pixels that need no download.

    python -m data.digits
Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998. Every fifth picture of a class is for testing.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from console.errors import InputError, run_command
from console.progress import console
from storage.atomic import atomic_path

BRIGHTEST = 16
"""Of the set's grey values."""


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", default="data/sklearn_digits", help="output folder (default: data/sklearn_digits)"
    )
    return parser.parse_args()


def write_digits(folder: Path) -> Counter[str]:
    """train/<digit>/*.png and test/<digit>/*.png, 8x8 grey; returns the number of pictures of both.

    InputError when scikit-learn is not there, or the folder is there already.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "the digits come with scikit-learn, which is not installed: pip install -r deps/requirements-dev.txt"
        ) from error
    if folder.exists():
        raise InputError(f"{folder} is there already: remove it, or choose another --output_dir")
    digits = load_digits()
    seen: Counter[int] = Counter()
    written: Counter[str] = Counter()
    with atomic_path(folder) as temporary:
        for picture, digit in zip(digits.images, digits.target.tolist(), strict=True):
            split = "test" if seen[digit] % 5 == 4 else "train"
            place = temporary / split / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            grey = np.round(picture * (255 / BRIGHTEST)).astype(np.uint8)
            Image.fromarray(grey).save(place / f"{seen[digit]:03}.png")
            seen[digit] += 1
            written[split] += 1
    return written


def main() -> None:
    """Write the pictures and print how many."""
    folder = Path(parse_args().output_dir)
    written = write_digits(folder)
    console.print(f"{folder}: {written['train']} pictures to train with, {written['test']} to test with")


if __name__ == "__main__":
    run_command(main)
