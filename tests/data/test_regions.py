"""Region views: boxes stay on what they describe, through crop, flip and resize."""

import random

import numpy as np
import pytest
from PIL import Image

from data.regions import RegionError, RegionSampling, patch_mask, sample_view

SIZE, PATCH = 64, 8


def painted(boxes, size=(200, 160)):
    """A black image with one box in red, the next in green, the next in blue."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for i, (x, y, w, h) in enumerate(boxes):
        pixels[y : y + h, x : x + w, i] = 255
    return Image.fromarray(pixels)


def test_boxes_follow_their_pixels():
    boxes = [(20, 30, 60, 50), (110, 70, 64, 70)]
    image = painted(boxes)
    record = {"elems": [{"caption": str(i), "bb": list(box)} for i, box in enumerate(boxes)]}
    seen = set()
    for seed in range(200):
        view, regions = sample_view(image, record, SIZE, PATCH, 0.5, RegionSampling(most=2), random.Random(seed))
        assert view.size == (SIZE, SIZE)
        assert 1 <= len(regions) <= 2
        pixels = np.asarray(view)
        for region in regions:
            rows, columns = np.nonzero(pixels[..., int(region.text)] > 127)
            cx, cy, w, h = (SIZE * v for v in region.box)
            assert columns.min() == pytest.approx(cx - w / 2, abs=2.5)
            assert columns.max() + 1 == pytest.approx(cx + w / 2, abs=2.5)
            assert rows.min() == pytest.approx(cy - h / 2, abs=2.5)
            assert rows.max() + 1 == pytest.approx(cy + h / 2, abs=2.5)
            seen.add(region.text)
    assert seen == {"0", "1"}


def test_outer_caption_uses_up_the_only_place():
    record = {"elems": [{"caption": "a", "bb": [20, 30, 60, 50]}], "caption": ["whole"]}
    _, regions = sample_view(painted([]), record, SIZE, PATCH, 0.5, RegionSampling(most=1), random.Random(0))
    assert [(r.text, r.is_image, r.box) for r in regions] == [("whole", True, (0.5, 0.5, 1.0, 1.0))]
    assert regions[0].patches.tolist() == [1] * 65


def test_attributes_come_first():
    record = {"elems": [{"caption": "mug", "bb": [20, 30, 60, 50], "attributes": "small"}]}
    _, regions = sample_view(painted([]), record, SIZE, PATCH, 0.0, RegionSampling(), random.Random(0))
    assert regions[0].text == "small mug"


@pytest.mark.parametrize("box", [[-1, 0, 5, 5], [190, 0, 20, 5], [0, 0, 0, 5], [0, 150, 5, 20]])
def test_boxes_outside_the_image_are_named(box):
    record = {"elems": [{"caption": "a", "bb": box}]}
    with pytest.raises(RegionError, match=r"does not fit its image of 200x160"):
        sample_view(painted([]), record, SIZE, PATCH, 0.0, RegionSampling(), random.Random(0))


@pytest.mark.parametrize(
    ("box", "columns", "rows"),
    [
        ((0, 0, 64, 64), range(8), range(8)),
        ((8, 16, 8, 8), range(1, 2), range(2, 3)),
        ((7.5, 16, 1, 9), range(0, 2), range(2, 4)),
        ((63.9, 63.9, 0.05, 0.05), range(7, 8), range(7, 8)),
    ],
)
def test_patch_mask_by_hand(box, columns, rows):
    mask = patch_mask(box, 8, 8)
    expected = {0} | {1 + 8 * row + column for row in rows for column in columns}
    assert set(mask.nonzero().flatten().tolist()) == expected
