"""The mini world in pixels: reproducible, disjoint between splits, with boxes and labels that fit."""

import hashlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.miniworld import SPLITS, boxes, dense_labels, paint, scene_for
from data.miniworld.captions import draw_captions
from data.miniworld.draws import Draws
from data.miniworld.paint import visible
from data.miniworld.parts import text_draws
from data.miniworld.scene import HELD_OUT, Scene
from data.miniworld.write import pack_png

# --- draws -------------------------------------------------------------------------------------------------


def test_draws_are_splitmix64():
    draws = Draws(0)
    draws.key = 1234567  # the published test vector of splitmix64
    assert [draws.bits() for _ in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_noise_is_the_bytes_of_the_same_stream():
    one, two = Draws(3, "noise"), Draws(3, "noise")
    noise = one.noise(5, 4)
    assert noise.tobytes() == b"".join(two.bits().to_bytes(8, "little") for _ in range(3))[:20]
    assert one.bits() == two.bits()


def test_draws_keep_their_ranges_and_paths_apart():
    draws = Draws(1, "range")
    assert {draws.integer(-1, 2) for _ in range(200)} == {-1, 0, 1, 2}
    assert {draws.weighted((0, 3, 0, 1)) for _ in range(200)} == {1, 3}
    assert sorted(draws.shuffled(range(9))) == list(range(9))
    assert all(0 <= draws.uniform() < 1 for _ in range(200))
    keys = {Draws(seed, *path).key for seed in (0, 1) for path in ((), ("a",), (1,), ("a", 1), (1, "a"))}
    assert len(keys) == 10


# --- scenes and pictures -----------------------------------------------------------------------------------


def test_golden_pixels_and_words():
    """A change of any library, or of the world, shows here. If the world changed, raise its VERSION."""
    pixels, words = hashlib.sha256(), hashlib.sha256()
    for split in ("cc3m", "vg", "itr_test", "imagenet", "flowers_test"):
        for index in range(20):
            pixels.update(paint(scene_for(split, index)).tobytes())
    for split in ("cc3m", "itr_test"):
        for index in range(20):
            draws, phrasing = text_draws(split, index, 0), SPLITS[split].phrasing
            captions = draw_captions(draws, scene_for(split, index), phrasing, 5)
            words.update("\n".join(caption.text for caption in captions).encode())
    assert pixels.hexdigest() == "250d8d738893378057a32344e32076732a38addea3c8a5534d30b8ac8cfc8c21"
    assert words.hexdigest() == "3f213e8704e44d64b5a6429f974b0dbddf982467dace9be657d62a2d2ab647f9"


def test_held_out_pairs_are_shown_in_finetuning_only():
    def share(split):
        things = [thing for index in range(300) for thing in scene_for(split, index).things]
        return sum((thing.shape, thing.colour) in HELD_OUT for thing in things) / len(things)

    for split in ("cc3m", "vg", "cc3m_more", "sbu", "vg_more", "coco", "dense", "imagenet"):
        assert share(split) == 0, split
    for split in ("itr_train", "itr_val", "itr_test", "vqa_train", "vqa_test", "nlvr_train", "flowers_train"):
        assert share(split) > 2 * len(HELD_OUT) / 64, split


def test_scenes_hold_what_they_should():
    scenes = [scene_for("cc3m", index) for index in range(600)]
    counts = [len(scene.things) for scene in scenes]
    repeats = [len({(t.shape, t.colour) for t in s.things}) < len(s.things) for s in scenes]
    assert set(counts) == {2, 3, 4} and counts.count(4) < 100
    assert 0.22 < np.mean(repeats) < 0.38
    assert np.mean([len(scene_for("itr_test", index).things) for index in range(300)]) > 2.9
    for split in ("imagenet", "flowers_val"):
        assert all(len(scene_for(split, index).things) == 1 for index in range(50))


def test_splits_are_disjoint():
    keys = [scene_for(split, index).key for split in SPLITS for index in range(60)]
    assert len(set(keys)) == len(keys)
    assert scene_for("cc3m", 5, seed=1) != scene_for("cc3m", 5, seed=0)
    paths = [split.path(index) for split in SPLITS.values() if split.part for index in range(split.count)]
    assert len(set(paths)) == len(paths)
    files = [Path(path).name for path in paths if "/coco/" in path]
    assert len({name.rpartition("_")[2] for name in files}) == len(files)  # COCO ids too


def test_boxes_are_tight_around_what_is_painted():
    """Independent of the masks: take the topmost thing away and see which pixels change."""
    for index in range(60):
        scene = scene_for("vg", index)
        without = Scene(scene.background, scene.tint, scene.clutter, scene.key, scene.things[:-1])
        changed = (paint(scene).astype(int) - paint(without)).any(2)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        x, y, w, h = boxes(scene)[-1]
        outer = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        inner = (x, y, x + w, y + h)
        assert 0 <= x < x + w <= 64 and 0 <= y < y + h <= 64
        assert all(abs(a - b) <= 1 for a, b in zip(outer, inner, strict=True)), (index, outer, inner)
        assert 9 <= max(w, h) <= 18 if scene.things[-1].size == 0 else 17 <= max(w, h) <= 30


def test_png_keeps_the_pixels():
    picture = paint(scene_for("itr_val", 3))
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    assert np.array_equal(np.asarray(Image.open(BytesIO(pack_png(picture)))), picture)


@pytest.mark.parametrize("patch", [8, 16])
def test_dense_labels_by_plain_loops(patch):
    for index in range(8):
        scene = scene_for("dense", index)
        seen, grid, expected = visible(scene), 64 // patch, []
        for row in range(grid):
            for column in range(grid):
                tile = seen[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].ravel()
                counts = [int((tile == thing).sum()) for thing in range(len(scene.things))]
                best = scene.things[counts.index(max(counts))]
                covered = 2 * sum(counts) >= patch * patch
                look = (best.shape, best.colour, best.texture, best.size)
                expected.append(look if covered else (-1, -1, -1, -1))
        assert dense_labels(scene, patch).tolist() == [list(look) for look in expected]
