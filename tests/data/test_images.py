"""RandAugment and transforms."""

import numpy as np
import pytest
import torch
from PIL import Image

from data.transforms import (
    ALL_OPS,
    CLIP_MEAN,
    CLIP_STD,
    COLOUR_OPS,
    Augmentation,
    RandAugment,
    evaluation_transform,
    square_picture,
    training_transform,
    varied_picture,
)
from models.base import ImageShape


def picture(size=(60, 40)):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_colour_ops_leave_pixels_in_place():
    """A black image with one white pixel: colour ops may change values, never positions."""
    pixels = np.zeros((20, 20, 3), dtype=np.uint8)
    pixels[4:8, 6:9] = 200
    for op in COLOUR_OPS.values():
        out = np.asarray(op(Image.fromarray(pixels), 7)).astype(int)
        assert out[5, 7].sum() > out[15, 15].sum()


def test_levels_by_hand():
    flat = Image.new("RGB", (8, 8), (100, 100, 100))
    assert np.asarray(ALL_OPS["Brightness"](flat, 7)).max() == int(100 * 1.36)
    image = picture()
    pixels = np.asarray(image)
    for op, axis in (("TranslateX", 1), ("TranslateY", 0)):
        torch.manual_seed(0)
        moved = np.asarray(ALL_OPS[op](image, 7))
        shifts = [np.array_equal(moved[8:-8, 8:-8], np.roll(pixels, s, axis)[8:-8, 8:-8]) for s in (7, -7)]
        assert any(shifts)
        assert (moved == 128).all(axis=-1).any()  # grey fill


def test_ops_are_uniform_and_run_half_the_time():
    ran = []
    ops = {name: lambda image, level, name=name: ran.append((name, level)) or image for name in "abcd"}
    torch.manual_seed(0)
    augment = RandAugment(2, 7, ops)
    for _ in range(2000):
        augment(None)
    assert len(ran) / 4000 == pytest.approx(0.5, abs=0.03)
    for name in "abcd":
        assert sum(n == name for n, _ in ran) / len(ran) == pytest.approx(0.25, abs=0.03)
    assert {level for _, level in ran} == {7}


def test_transforms_normalise_and_resize():
    grey = Image.new("RGB", (50, 70), (128, 128, 128))
    tensor = evaluation_transform(ImageShape(32, 8))(grey)
    assert tensor.shape == (3, 32, 32)
    expected = [(128 / 255 - mean) / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)]
    assert tensor[:, 5, 5].tolist() == pytest.approx(expected, abs=1e-5)
    assert training_transform(ImageShape(32, 8), Augmentation())(picture()).shape == (3, 32, 32)


def test_training_transform_follows_torch_seed():
    transform = training_transform(ImageShape(32, 8), Augmentation())
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(transform(picture()))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def squared(image, side):
    """[3, side, side] in [0, 1], by Pillow and numpy alone."""
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))


def test_a_square_picture_is_resized_and_nothing_else():
    for size in ((60, 40), (16, 16), (7, 90)):
        found = square_picture(16)(picture(size))
        assert found.dtype == torch.float32 and torch.equal(found, squared(picture(size), 16))


def test_an_augmented_picture_is_a_crop():
    """Of 16 pixels one of the nine crops of a square of 18; all nine come up, and half of them mirrored."""
    torch.manual_seed(0)
    larger = squared(picture(), 18)
    crops = [larger[:, top : top + 16, left : left + 16] for top in range(3) for left in range(3)]
    for flip, share in ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0)):
        vary, seen, mirrored = varied_picture(16, flip), set(), 0
        for _ in range(200):
            found = vary(picture())
            assert found.shape == (3, 16, 16) and found.dtype == torch.float32
            plain = [number for number, crop in enumerate(crops) if torch.equal(found, crop)]
            turned = [number for number, crop in enumerate(crops) if torch.equal(found.flip(2), crop)]
            assert len(plain) + len(turned) == 1
            seen |= {*plain, *turned}
            mirrored += len(turned)
        assert seen == set(range(9))
        assert mirrored / 200 == pytest.approx(share, abs=0.12)
