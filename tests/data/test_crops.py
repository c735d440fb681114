"""Multi-crop views: sizes, that they vary as configured, and that the mini's keep what its classes are."""

import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from configs.schema import parse, read_yaml, task_file
from console.errors import InputError
from data.miniworld import boxes, scene_for
from data.miniworld.readers import MultiCrops, Views
from data.randomness import seeded
from data.sources import Files
from models.base import ImageShape
from pretraining.stages import PretrainConfig
from tests.data.configured import configured

SHAPE = ImageShape(16, 4, mean=(0.0,) * 3, std=(1.0,) * 3)
STILL = {"large": [1.0, 1.0], "small": [1.0, 1.0], "flip": 0.0, "jitter_chance": 0.0, "grey": 0.0}


@pytest.fixture
def folder(tmp_path):
    """One picture, left half red, right half blue."""
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    image.paste((0, 0, 255), (16, 0, 32, 32))
    (tmp_path / "n1").mkdir()
    image.save(tmp_path / "n1" / "x.png")
    return tmp_path


def crops(folder, small=3, **views):
    config = configured("multi_crops", Files(folder=str(folder)), small_crops=small, views=Views(**(STILL | views)))
    reader = MultiCrops(config, SHAPE, None)
    with seeded(0) as rng:
        samples = [reader.sample(0, rng) for _ in range(20)]
        return reader.collate(samples, 20, rng)


def test_sizes(folder):
    batch = crops(folder)
    assert batch["global"].shape == (20, 2, 3, 16, 16)
    assert batch["local"].shape == (20, 3, 3, 8, 8)
    assert crops(folder, small=0)["local"].shape == (20, 0, 3, 8, 8)


def test_nothing_varies_unless_asked(folder):
    views = crops(folder)["global"].flatten(0, 1)
    assert all(torch.equal(view, views[0]) for view in views)
    assert views[0, 0, :, 0].min() > 0.9
    assert views[0, 2, :, -1].min() > 0.9


def test_each_kind_of_change(folder):
    mirrored = crops(folder, flip=0.5)["global"].flatten(0, 1)[:, 2, 0, 0] > 0.5  # blue on the left
    assert 8 < mirrored.sum() < 32
    grey = crops(folder, grey=0.5)["global"].flatten(0, 1)
    lost = (grey[:, 0] == grey[:, 1]).flatten(1).all(dim=1)
    assert 8 < lost.sum() < 32
    jittered = crops(folder, jitter_chance=1.0, jitter=[0.0, 0.0, 0.0, 0.5])["global"].flatten(0, 1)[:, :, 0, 0]
    assert len({tuple(colour.tolist()) for colour in jittered}) > 20


def test_small_crops_see_less(folder):
    config = configured(
        "multi_crops", Files(folder=str(folder)), small_crops=2, views=Views(**(STILL | {"small": [0.1, 0.2]}))
    )
    reader = MultiCrops(config, SHAPE, None)
    with seeded(0) as rng:
        batch = reader.collate([reader.sample(0, rng) for _ in range(20)], 20, rng)
    whole = crops(folder)["global"]
    assert torch.equal(batch["global"], whole)
    one_colour = batch["local"].flatten(0, 1).mean(dim=(2, 3)).max(dim=1).values > 0.95
    assert one_colour.sum() >= 10, "they often hold one half alone"


def test_the_minis_views_keep_what_its_classes_are():
    """Most large crops hold nearly all of the one object, and the small ones are not mostly background."""
    config = parse(PretrainConfig, read_yaml(task_file("dino-mini", "pretrain")), "dino-mini")
    views = config.stages[-1].sides["crops"].views
    image, kept = Image.new("RGB", (64, 64)), {"large": [], "small": []}
    torch.manual_seed(0)
    for index in range(300):
        ((x, y, w, h),) = boxes(scene_for("imagenet", index))
        for name, shares in kept.items():
            top, left, high, wide = T.RandomResizedCrop.get_params(image, getattr(views, name), [3 / 4, 4 / 3])
            across = max(0, min(x + w, left + wide) - max(x, left))
            down = max(0, min(y + h, top + high) - max(y, top))
            shares.append(across * down / (w * h))
    large, small = (torch.tensor(shares) for shares in kept.values())
    assert (large > 0.8).double().mean() > 0.8
    assert small.mean() > 0.6


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"large": [0.5]}, "large is two rising shares"),
        ({"small": [0.5, 0.2]}, "small is two rising shares"),
        ({"small": [0.0, 0.2]}, "small is two rising shares"),
        ({"jitter": [0.1, 0.1, 0.1, 0.7]}, "jitter is four numbers"),
        ({"jitter": [0.1]}, "jitter is four numbers"),
        ({"grey": 1.2}, "grey is a probability"),
    ],
)
def test_bad_views(views, message):
    with pytest.raises(InputError, match=message):
        Views(**views)
