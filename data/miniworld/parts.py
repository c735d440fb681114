"""The splits of the mini world: how many scenes each holds, from which distribution, under which file names.

A scene is named by (split, index, seed) and nothing else, so splits are disjoint by construction and any
scene can be drawn again without its file. A part is a group of splits generated together on first use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from data.miniworld.draws import Draws
from data.miniworld.scene import (
    COLOURS,
    PRETRAIN,
    REGIONS,
    SHAPES,
    SHIFTED,
    TEXTURES,
    Recipe,
    Scene,
    draw_scene,
)

VERSION = 1  # of the world: anything that changes a pixel or a word raises it

# part -> parts whose files it needs beside its own
PARTS: dict[str, tuple[str, ...]] = {
    "calibration": (),
    "pretrain": (),
    "regions": (),
    "itr": (),
    "ic": ("itr",),
    "vqa": (),
    "imagenet": (),
    "flowers102": (),
}
MEGABYTES = {
    "calibration": 40,
    "pretrain": 250,
    "regions": 4,
    "itr": 40,
    "ic": 10,
    "vqa": 50,
    "imagenet": 70,
    "flowers102": 30,
}

IMAGENET_CLASSES = tuple((shape, texture) for shape in range(8) for texture in range(4))
FLOWER_CLASSES = tuple((shape, (3 * shape + step) % 8) for step in (1, 4, 6) for shape in range(8))
SHARD = 1024  # samples in one webdataset shard


@dataclass(frozen=True)
class Split:
    """`count` scenes of a part; `path(index)` is the image's file below the world's root."""

    part: str | None
    count: int
    recipe: Recipe
    phrasing: int
    path: Callable[[int], str]
    classes: int = 1  # the class of scene i is i modulo this
    only: Callable[[int], tuple[int, int | None, int | None]] | None = None


def _cc3m(folder: int) -> Callable[[int], str]:
    return lambda i: f"images/cc3m/{folder + i // 1000:05d}/{folder + i // 1000:05d}{i % 1000:04d}.png"


def _vg(first: int) -> Callable[[int], str]:
    return lambda i: f"images/vg/{first + i}.png"


def _coco(folder: str, first: int) -> Callable[[int], str]:
    return lambda i: f"images/coco/{folder}/COCO_{folder}_{first + i:012d}.png"


def _sbu(index: int) -> str:
    return f"data/pretrain/sbu/{index // SHARD:05d}.tar/{index:09d}.png"


def wnid(index: int) -> str:
    """The folder name of an ImageNet-like class: `n00000001` for class 0."""
    return f"n{index + 1:08d}"


def _imagenet(index: int) -> str:
    label, number = index % 32, index // 32
    return f"data/imagenet/train/{wnid(label)}/{wnid(label)}_{number}.png"


def _flowers(first: int) -> Callable[[int], str]:
    return lambda i: f"data/flowers102/images/image_{first + i:05d}.png"


def _imagenet_look(label: int) -> tuple[int, None, int]:
    shape, texture = IMAGENET_CLASSES[label]
    return shape, None, texture


def _flower_look(label: int) -> tuple[int, int, None]:
    return (*FLOWER_CLASSES[label], None)


# every picture has a number of its own: the captions' and the questions' files share their image folders
SPLITS: dict[str, Split] = {
    "cc3m": Split("calibration", 3072, PRETRAIN, 0, _cc3m(0)),
    "vg": Split("calibration", 2048, REGIONS, 0, _vg(1)),
    "cc3m_more": Split("pretrain", 16384, PRETRAIN, 0, _cc3m(100)),
    "sbu": Split("pretrain", 4096, PRETRAIN, 0, _sbu),
    "vg_more": Split("pretrain", 10240, REGIONS, 0, _vg(10001)),
    "coco": Split("pretrain", 2048, PRETRAIN, 0, _coco("train2014", 400001)),
    "vg_val": Split("regions", 500, REGIONS, 0, _vg(70001)),
    "dense": Split(None, 1 << 30, PRETRAIN, 0, "dense/{}".format),
    "itr_train": Split("itr", 3000, SHIFTED, 1, _coco("train2014", 1)),
    "itr_val": Split("itr", 500, SHIFTED, 1, _coco("val2014", 200001)),
    "itr_test": Split("itr", 1000, SHIFTED, 1, _coco("val2014", 300001)),
    "vqa_train": Split("vqa", 3000, SHIFTED, 1, _coco("train2014", 100001)),
    "vqa_val": Split("vqa", 500, SHIFTED, 1, _coco("val2014", 500001)),
    "vqa_vg": Split("vqa", 1000, SHIFTED, 1, _vg(50001)),
    "vqa_test": Split("vqa", 500, SHIFTED, 1, _coco("test2015", 600001)),
    "imagenet": Split("imagenet", 32 * 250, PRETRAIN, 0, _imagenet, 32, _imagenet_look),
    "flowers_train": Split("flowers102", 24 * 60, SHIFTED, 1, _flowers(1), 24, _flower_look),
    "flowers_val": Split("flowers102", 24 * 20, SHIFTED, 1, _flowers(10001), 24, _flower_look),
    "flowers_test": Split("flowers102", 24 * 40, SHIFTED, 1, _flowers(20001), 24, _flower_look),
}


def scene_for(split: str, index: int, seed: int = 0) -> Scene:
    """Scene number `index` of a split, drawn afresh: needs no file. `dense` holds as many as one asks for."""
    about = SPLITS[split]
    only = about.only(index % about.classes) if about.only else None
    return draw_scene(Draws(seed, "scene", split, index), about.recipe, only)


def text_draws(split: str, index: int, seed: int) -> Draws:
    """The stream from which a scene's captions, regions or questions are drawn."""
    return Draws(seed, "text", split, index)


def scaled(split: str, scale: float) -> int:
    """How many scenes of a split a world of this scale holds: whole rounds of its classes, at least one."""
    about = SPLITS[split]
    rounds = about.count // about.classes
    return about.classes * max(1, min(rounds, round(rounds * scale)))


def class_name(split: str, label: int) -> str:
    """`striped circle` for ImageNet-like classes, `red circle` for Flowers-like ones."""
    if split == "imagenet":
        shape, texture = IMAGENET_CLASSES[label]
        return f"{TEXTURES[texture]} {SHAPES[shape]}"
    shape, colour = FLOWER_CLASSES[label]
    return f"{COLOURS[colour]} {SHAPES[shape]}"
