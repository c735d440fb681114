"""Truth of captions: cases by hand, and the captions of a small world about their own and about other pictures."""

import numpy as np
import pytest

from console.errors import InputError
from data.miniworld import ensure, scene_for
from data.miniworld.scene import Scene, Thing
from evaluation.captions import read_ground_truth
from evaluation.truthfulness import load_scenes, truth_of_images, truthfulness


def thing(shape, colour, x, y):
    return Thing(shape, colour, 0, 0, x, y, 7.0, 4, (0, 0, 0), 0)


# two red circles on the left and a blue star on the right; a green ring
TWO_AND_ONE = Scene(2, (0, 0, 0), 0, 0, (thing(0, 0, 10.0, 12.0), thing(0, 0, 12.0, 50.0), thing(4, 4, 50.0, 30.0)))
RING = Scene(0, (0, 0, 0), 0, 0, (thing(5, 3, 32.0, 32.0),))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    return ensure("ic", root, workers=1, show=False, scale=0.01)


@pytest.mark.parametrize(
    ("texts", "true", "present"),
    [
        (("two red circles and a blue star", "a green ring"), 100, 100),
        (("Two red circles, and a blue star.", "a green hoop!"), 100, 100),  # signs and case say nothing
        (("a blue star left of a red circle", "a green ring"), 50, 100),  # all there, wrongly placed
        (("two red circles and a white star", "a green ring"), 50, 75),
        (("three red circles and a star", "a green ring and a heart"), 0, 100 * 4 / 6),
        (("a red circle and", "of of"), 0, 100),
        (("we see", "[SEP]"), 0, 0),
        (("", ""), 0, 0),
    ],
)
def test_by_hand(texts, true, present):
    found = truthfulness(dict(zip((8, 9), texts, strict=True)), {8: TWO_AND_ONE, 9: RING})
    assert found == pytest.approx({"true": true, "present": present})
    single = truth_of_images(dict(zip((8, 9), texts, strict=True)), {8: TWO_AND_ONE, 9: RING})
    assert {metric: 50 * sum(of.values()) for metric, of in single.items()} == pytest.approx(found, abs=1e-9)


def test_single_images_by_hand():
    """4 of 6 things are there: 3 of 4 in the first caption, 1 of 2 in the second; three are mentioned on average."""
    texts = {8: "three red circles and a star", 9: "a green ring and a heart"}
    single = truth_of_images(texts, {8: TWO_AND_ONE, 9: RING})
    assert single["true"] == {8: 0.0, 9: 0.0}
    share = 4 / 6
    assert single["present"] == pytest.approx({8: share + (3 - 4 * share) / 3, 9: share + (1 - 2 * share) / 3})
    right = truth_of_images({8: "two red circles", 9: "a blue ring"}, {8: TWO_AND_ONE, 9: RING})
    assert right["true"] == {8: 1.0, 9: 0.0}


def test_spread_of_single_images_is_the_ratios():
    """Draw captions anew many times: the ratio of sums varies as the mean of the linear scores does."""
    rng = np.random.default_rng(0)
    mentioned = rng.integers(1, 6, 300)
    there = rng.binomial(mentioned, 0.2 + 0.1 * mentioned)
    ratio = there.sum() / mentioned.sum()
    linear = ratio + (there - ratio * mentioned) / mentioned.mean()
    draws = rng.integers(0, 300, (4000, 300))
    ratios = there[draws].sum(1) / mentioned[draws].sum(1)
    assert linear.std() / 300**0.5 == pytest.approx(ratios.std(), rel=0.05)
    assert np.abs(linear[draws].mean(1) - ratios).mean() < 0.1 * ratios.std()


def test_scenes_by_image_id(world):
    scenes = load_scenes(world, [300003, 200001, 300001, 7])
    assert list(scenes) == [7, 200001, 300001, 300003]
    for image, split, index in ((7, "itr_train", 6), (200001, "itr_val", 0), (300003, "itr_test", 2)):
        assert scenes[image] == scene_for(split, index)


def test_ground_truth_is_true_only_of_its_picture(world):
    truth = read_ground_truth(world / "data/finetune/ic/coco_karpathy_test_gt.json")
    scenes = load_scenes(world, truth)
    assert len(scenes) == 10 and all(len(captions) == 5 for captions in truth.values())
    for k in range(5):
        assert truthfulness({i: captions[k] for i, captions in truth.items()}, scenes) == {"true": 100, "present": 100}
    images = list(truth)
    others = {image: truth[other][0] for image, other in zip(images, [*images[1:], images[0]], strict=True)}
    found = truthfulness(others, scenes)
    assert found["true"] < 30 and found["present"] < 60


def test_elsewhere_there_is_no_truth(tmp_path):
    assert load_scenes(tmp_path, [1]) is None


def test_bad_input(world):
    with pytest.raises(InputError, match="image 300999 is not among the captioned pictures"):
        load_scenes(world, [300001, 300999])
    with pytest.raises(InputError, match="image 42 is not"):
        load_scenes(world, [42, 300001])  # 30 pictures at this scale, numbers 1 to 30
    with pytest.raises(InputError, match="1 caption is there for 2 scenes"):
        truthfulness({8: "a ring"}, {8: TWO_AND_ONE, 9: RING})
    with pytest.raises(InputError, match="0 captions"):
        truthfulness({}, {})
