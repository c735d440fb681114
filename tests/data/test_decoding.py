"""What becomes of image files: right values come from Pillow, from numpy, and from formulas."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from console.errors import InputError
from data.images import ImageError, is_hidden, read_image
from data.sources import Files

NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(NOISE[:6, :8]).resize((64, 48), Image.Resampling.BICUBIC))
RAMP = np.linspace(0, 1, 48 * 64).reshape(48, 64)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(image, kind="PNG", ground="", **options):
    return np.asarray(read_image(encoded(image, kind, **options), "x", ground))


def png_of_16_bits(pixels, *chunks):
    """PNG of grey [h, w] or RGB [h, w, 3] values; Pillow writes no RGB of 16 bits, and no key colour with 16."""
    h, w = pixels.shape[:2]
    head = struct.pack(">IIBBBBB", w, h, 16, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels.astype(">u2"))
    chunks = ((b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *((mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((mode, "JPEG") for mode in ("L", "RGB", "CMYK")),
        *((mode, "TIFF") for mode in ("L", "RGB", "CMYK", "YCbCr", "RGBA")),
        *(("RGB", kind) for kind in ("WEBP", "BMP", "GIF", "PPM")),
    ],
)
def test_opaque_8_bits_as_pillow_converts(mode, kind):
    data = encoded(Image.fromarray(NOISE).convert(mode), kind)
    assert np.array_equal(np.asarray(read_image(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bits_are_divided_by_257(kind):
    values = np.arange(65536).reshape(256, 256)
    expected = np.floor(values / 257 + 0.5)
    found = decoded(Image.fromarray(values.astype(np.uint16)), kind)
    assert np.array_equal(found, np.stack([expected] * 3, axis=-1))
    assert len(np.unique(found)) == 256


def test_16_bits_of_either_byte_order():
    values = np.array([[0, 128, 129, 257, 4095, 65535]], np.uint16)
    for order in ("<u2", ">u2"):
        little = order == "<u2"
        tags = [(256, 6), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 12)]
        pack = "<" if little else ">"
        entries = b"".join(
            struct.pack(f"{pack}HHI", tag, 3, 1) + struct.pack(f"{pack}HH", number, 0) for tag, number in tags
        )
        head = (b"II" if little else b"MM") + struct.pack(f"{pack}HI", 42, 20)
        tiff = head + values.astype(order).tobytes() + struct.pack(f"{pack}H", len(tags)) + entries + bytes(4)
        assert np.asarray(read_image(tiff))[0, :, 0].tolist() == [0, 0, 1, 1, 16, 255]


def test_colours_of_16_bits():
    """Pillow gives their high bytes, at most one step below v / 257."""
    values = np.arange(0, 65536, 7)[:9360].reshape(-1, 40, 3)
    png = png_of_16_bits(values)
    assert np.abs(np.asarray(read_image(png)) - values / 257).max() <= 1


def test_floats_from_0_to_1():
    found = decoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF")
    assert np.array_equal(found[..., 0], np.floor(255 * RAMP.astype(np.float32).astype(float) + 0.5))


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (255 * RAMP.astype(np.float32), r"x \(its numbers run from 0 to 255, where 0 is black and 1 is white: scale"),
        (RAMP.astype(np.float32) - 1, r"run from -1 to 0"),
        (np.full((4, 4), np.nan, np.float32), r"run from nan to nan"),
        ((RAMP * 65535).astype(np.int32), r"x \(its whole numbers of 32 bits, 0 to 65535, have no known white level"),
    ],
)
def test_numbers_that_do_not_say_what_is_white(pixels, reason):
    with pytest.raises(ImageError, match=reason):
        decoded(Image.fromarray(pixels), "TIFF")


@pytest.mark.parametrize(("name", "colour"), [("", 255), ("white", 255), ("black", 0), ("#808080", 128)])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_over_the_ground(mode, name, colour):
    """out = a c + (1 - a) g, to the step of rounding."""
    picture = Image.fromarray(SMOOTH).convert(mode)
    alpha = np.round(255 * RAMP).astype(np.uint8)
    picture.putalpha(Image.fromarray(alpha))
    colours, share = np.asarray(picture.convert("RGB")).astype(float), alpha[..., None] / 255
    found = decoded(picture, ground=name)
    assert np.abs(found - (share * colours + (1 - share) * colour)).max() <= 1
    assert (found[alpha == 0] == colour).all() and np.array_equal(found[alpha == 255], colours[alpha == 255])


def test_palettes_and_keys_that_mean_nothing_here():
    palette = Image.fromarray(SMOOTH).quantize(8)
    for transparency in (3, bytes([255, 255, 255, 0])):
        found = decoded(palette, ground="#102030", transparency=transparency)
        hidden = np.asarray(palette) == 3
        assert (found[hidden] == (16, 32, 48)).all()
        assert np.array_equal(found[~hidden], np.asarray(palette.convert("RGB"))[~hidden])
    grey = Image.fromarray(np.array([[0, 7, 200]], np.uint8))
    assert decoded(grey, transparency=7)[0, :, 0].tolist() == [0, 255, 200]
    png = png_of_16_bits(np.array([[0, 514, 515, 65535]]), (b"tRNS", struct.pack(">H", 514)))
    assert np.asarray(read_image(png))[0, :, 0].tolist() == [0, 255, 2, 255]
    assert decoded(palette, "GIF", transparency=3)[hidden].tolist() == [[255] * 3] * hidden.sum()


def test_ground_is_a_colour():
    with pytest.raises(InputError, match="ground is a colour such as white or #7f7f7f, not 'wite'"):
        Files(ground="wite")


TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""EXIF's orientation -> what to do with pixels as they are stored, by the standard's words (CIPA DC-008, 4.6.5)."""


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", TURNED)
def test_pictures_stand_upright(orientation, kind):
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    stored = np.asarray(Image.open(io.BytesIO(encoded(Image.fromarray(SMOOTH), kind, **options))).convert("RGB"))
    found = decoded(Image.fromarray(SMOOTH), kind, exif=exif, **options)
    assert np.array_equal(found, TURNED[orientation](stored))


def test_a_damaged_note_spoils_no_picture():
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 6, "boat"
    notes = bytearray(exif.tobytes())
    for place in range(6, len(notes)):
        damaged = bytes(notes[:place]) + bytes([notes[place] ^ 0xFF]) + bytes(notes[place + 1 :])
        found = decoded(Image.fromarray(SMOOTH), exif=damaged)
        assert any(np.array_equal(found, turn(SMOOTH)) for turn in TURNED.values())


def test_of_an_animation_the_first_frame():
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (10, 200)]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        found = decoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.abs(found.astype(int) - 10).max() <= 1, kind


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("JPEG2000", {}),
    ],
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_pictures_that_are_cut_are_broken(kind, options, share, tmp_path):
    data = encoded(Image.fromarray(NOISE), kind, **options)
    (tmp_path / "cut").write_bytes(data[: int(share * len(data))])
    for source in (tmp_path / "cut", data[: int(share * len(data))]):
        with pytest.raises(ImageError, match=r"cut \(broken: "):
            read_image(source, "cut")


@pytest.mark.parametrize("missing", [1, 2])
def test_only_the_mark_at_the_end_is_missing(missing):
    """Many JPEGs of the web end with their last pixel."""
    for quality in (30, 75, 95):
        data = encoded(Image.fromarray(NOISE), "JPEG", quality=quality)
        assert np.array_equal(np.asarray(read_image(data[:-missing])), np.asarray(read_image(data)))
    data = encoded(Image.fromarray(SMOOTH), "PNG")
    assert np.array_equal(np.asarray(read_image(data[:-12])), SMOOTH)  # its last chunk has no pixels


def test_a_progressive_jpeg_between_two_scans():
    """Each scan is of the whole picture, and finer: without the end mark nobody knows that another one followed."""
    data = encoded(Image.fromarray(SMOOTH), "JPEG", progressive=True)
    scans = [place for place in range(len(data)) if data.startswith(b"\xff\xda", place)]
    assert len(scans) > 5
    for end in (*scans[1:], len(data) - 2):
        with pytest.raises(ImageError, match="broken: image file is truncated"):
            read_image(data[:end])


def test_a_jpeg_that_was_filled_up_with_zeros():
    data = encoded(Image.fromarray(NOISE), "JPEG")
    assert np.array_equal(np.asarray(read_image(data + bytes(1000))), np.asarray(read_image(data)))
    for share in (0.5, 0.9):
        there = int(share * len(data))
        with pytest.raises(ImageError, match="broken: it is cut short"):
            read_image(data[:there] + bytes(len(data) - there))


def test_a_few_pixels_of_a_jpeg_are_missing():
    data = encoded(Image.fromarray(NOISE), "JPEG")
    for missing in range(4, 60):
        with pytest.raises(ImageError, match="broken"):
            read_image(data[:-missing])


def test_files_that_are_no_images_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "huge.bmp").write_bytes(
        encoded(Image.new("RGB", (1, 1)), "BMP").replace(struct.pack("<ii", 1, 1), struct.pack("<ii", 1 << 30, 1 << 30))
    )
    for name, reason in (
        ("nowhere.png", "missing"),
        ("link.png", "missing"),
        ("text.png/inside.png", "missing"),
        ("text.png", "broken: no image that Pillow knows"),
        ("empty.png", "broken: the file is empty"),
        ("folder.png", "broken: Is a directory"),
        ("huge.bmp", "broken: .*"),
    ):
        with pytest.raises(ImageError, match=rf"{tmp_path}/{name} \({reason}\)$"):
            read_image(tmp_path / name)


def test_hidden_and_system_names():
    for name in (".DS_Store", "._a.png", ".ipynb_checkpoints", "@eaDir", "__MACOSX/a.png", "a/.b/c.jpg", "Thumbs.db"):
        assert is_hidden(name), name
    for name in ("a.png", "./a.png", "a.b/c", "@home", "../a.png", "n01440764", "_a.png"):
        assert not is_hidden(name), name
