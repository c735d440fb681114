"""Read image files as RGB, and say in words when one cannot be read."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

ImageFile.LOAD_TRUNCATED_IMAGES = True  # web images are often cut short; the published loaders take them
Image.MAX_IMAGE_PIXELS = None  # Visual Genome and web images may be large


class ImageError(Exception):
    """An image is missing or broken; the message names it."""


def read_image(source: Path | str | bytes, name: str | None = None) -> Image.Image:
    """An image file (or its bytes) as RGB; ImageError naming it when it is missing or broken."""
    name = name or str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise ImageError(f"{name} (missing)") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise ImageError(
            f"{name} (broken: {str(error).splitlines()[0][:80] if str(error) else type(error).__name__})"
        ) from error
