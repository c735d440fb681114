"""Decode image files to RGB; all decoding is here. Errors name the file and the reason.

Opaque pictures of 8 bits come out as Pillow's `convert("RGB")` has them, which is what the published loaders do. This
module differs where that call silently damages the image (16 bits, floats, transparency, EXIF rotation).
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

from console.errors import InputError

Image.MAX_IMAGE_PIXELS = None  # Visual Genome and web images may be large

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

SYSTEM_NAMES = {
    "@eadir", "#recycle", "@recycle", "$recycle.bin",  # of network drives and Windows
    "__macosx", "system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip
"""Non-hidden system files next to images, in lower case."""

GROUND = "white"
"""Colour behind transparent pixels: as on a web page."""

UNREADABLE = (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, MemoryError, RuntimeError)
"""What Pillow's plugins raise for damaged files (AVIF and DDS the last)."""

JPEG_END = b"\xff\xd9"


def image_files(file: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The files of a sample, as its source names them: one, several, or None where it has none of its own."""
    return () if file is None else (file,) if isinstance(file, str) else file


class ImageError(Exception):
    """An image is missing, broken or ambiguous; the message names it."""


def is_hidden(path: str) -> bool:
    """Whether a file or folder, or a folder on the way to it, is hidden or the system's, no part of a data set."""
    parts = path.split("/")
    return any((part[:1] == "." and part not in (".", "..")) or part.lower() in SYSTEM_NAMES for part in parts)


def ground_colour(name: str) -> tuple[int, int, int]:
    """The colour `name` as (red, green, blue), `GROUND` where it is empty; InputError where Pillow knows none."""
    try:
        return ImageColor.getrgb(name or GROUND)[:3]
    except ValueError as error:
        raise InputError(f"ground is a colour such as white or #7f7f7f, not '{name}'") from error


def read_image(source: Path | str | bytes, name: str | None = None, ground: str = "") -> Image.Image:
    """An image file (or its bytes) as RGB, upright; ImageError naming it when it is missing, broken or ambiguous.

    Sixteen bits become eight as v / 257, floats from 0 to 1 become 255 v; other ranges have no known white level and
    are refused. ground: the colour behind transparent pixels (default: white). Of an animation the first frame.
    """
    name = name or ("the image" if isinstance(source, bytes) else str(source))
    try:
        image = _whole(source if isinstance(source, bytes) else Path(source).read_bytes())
        return _turned(_rgb(image, ground), _orientation(image))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"{name} (missing)") from error
    except ImageError as error:
        raise ImageError(f"{name} ({error})") from error
    except UNREADABLE as error:
        raise ImageError(f"{name} (broken: {_reason(error)})") from error


def _whole(data: bytes) -> Image.Image:
    """The picture with all its pixels; one of UNREADABLE where some are missing."""
    if not data:
        raise OSError("the file is empty")
    image = Image.open(io.BytesIO(data))
    jpeg = image.format in ("JPEG", "MPO")
    if jpeg and data.endswith(bytes(16)):  # an incomplete preallocated download; libjpeg decodes zeros as pixels
        data = data.rstrip(b"\0")
        image = Image.open(io.BytesIO(data))
    try:
        image.load()
    except OSError:
        if not jpeg or "progressive" in image.info:  # whose scans show the whole picture, less and less coarse
            raise
        image = _whole_without_end(data)
    return image


def _whole_without_end(data: bytes) -> Image.Image:
    """A JPEG without its end marker, as many on the web are; OSError if pixels are missing, too.

    libjpeg fills missing pixels from the bytes that follow. So two endings are tried: if they give the same picture,
    nothing was missing.
    """
    data = data.rstrip(b"\xff")  # half of the marker
    pictures = [Image.open(io.BytesIO(data + filling + JPEG_END)) for filling in (b"", b"\xa5\x5a" * 32)]
    if pictures[0].tobytes() != pictures[1].tobytes():
        raise OSError("it is cut short")
    return pictures[0]


def _rgb(image: Image.Image, ground: str) -> Image.Image:
    """Any mode as RGB."""
    if image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM"):  # PPM: scaled to 16 bits by Pillow
        image = _eight_bits(image)
    elif image.mode == "F":
        image = _from_floats(image)
    elif image.mode == "I":
        low, high = image.getextrema()
        raise ImageError(f"its whole numbers of 32 bits, {low} to {high}, have no known white level: save 8 or 16 bits")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, ground_colour(ground))
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _eight_bits(image: Image.Image) -> Image.Image:
    """16 bits -> 8: 65535 is 255. Pillow's own conversion cuts at 255, which turns nearly all of it white."""
    values = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if "transparency" in image.info:  # a grey value that stands for "nothing here"
        grey.putalpha(Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _from_floats(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # nor NaN
        raise ImageError(f"its numbers run from {low:g} to {high:g}, where 0 is black and 1 is white: scale them")
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or it is damaged: the pixels are whole."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, struct.error):
        return 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    if orientation == 1:
        return image
    # Keep the orientation alone: Pillow writes all other EXIF entries again, and fails on damaged ones.
    image.info.clear()
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)


def _reason(error: Exception) -> str:
    """What a library said, without the name of the file or buffer again."""
    if isinstance(error, UnidentifiedImageError):
        return "no image that Pillow knows"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:80]
