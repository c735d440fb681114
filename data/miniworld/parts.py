"""The splits of the mini world: how many scenes each holds, from which distribution, under which file names.

A scene is named by (split, index, seed) and nothing else, so splits are disjoint by construction and any
scene can be drawn again without its file. A part is a group of splits generated together on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from console.errors import InputError, nearest
from data.miniworld.draws import Draws
from data.miniworld.scene import COLOURS, PRETRAIN, REGIONS, SHAPES, SHIFTED, TEXTURES, Look, Recipe, Scene, draw_scene

VERSION = 1  # of the world: anything that changes a pixel or a word raises it


@dataclass(frozen=True)
class Part:
    """What is drawn together. megabytes: approximate size on disk. sha256: what `verify.hash_part` gives for seed 0.

    needs: the part whose pictures this one puts into words.
    """

    megabytes: int
    sha256: str
    needs: str | None = None


PARTS = {
    "calibration": Part(40, "682b9ad61c051eb88ec63ed992572dc625a16990bb66f9ac6039ac46d34545a6"),
    "pretrain": Part(250, "07efdd19cc300a9c9a732c550fbf49a85ce85c9eb3533cb46da981492ed70f2b"),
    "regions": Part(4, "4ef0285614dc5eecd5743ab8f2576f8150854353b7a600547c06f8c1d49c6b2d"),
    "itr": Part(40, "c8975c0edd36f6c08d89dd9d9502398c18fd559fe5d1f3cd775afa7750c608e9"),
    "ic": Part(10, "dcae8974defc1bfcb3b96dec121bc0dc4eb0206012c9637d68bbfbad9459ffd3", needs="itr"),
    "vqa": Part(50, "eaf9b07f52e7f7001d91b587eccc130438a6312b04d9c5d32991e330887fdfd0"),
    "nlvr": Part(40, "59f778c5f6418b8dfb0e6001f2079e87398900ac7fb972e2a5a2ac50b6addf0d"),
    "imagenet": Part(70, "f0f0541b4d7bb64e465d30b8c245f02fe4ead9bf0d4d971bc5c928740e5deb7e"),
    "flowers102": Part(30, "00283a08cf14ce976179f915fbd726eb4d0ea8b00a209776035ba821da4c187c"),
}

IMAGENET_LOOKS = tuple((shape, None, texture) for shape in range(8) for texture in range(4))
FLOWER_LOOKS = tuple((shape, (3 * shape + step) % 8, None) for step in (1, 4, 6) for shape in range(8))
SHARD = 1024  # samples in one webdataset shard


@dataclass(frozen=True)
class Split:
    """`count` scenes of a part ("": never on disk); `path(index)` is the image's file below the world's root.

    looks: of the classes, where there are some. Scene i is one thing, of class i modulo their number. together: so many
    scenes in a row belong to each other.
    """

    part: str
    count: int
    recipe: Recipe
    phrasing: int
    path: Callable[[int], str]
    looks: tuple[Look, ...] = ()
    together: int = 1


def _cc3m(folder: int) -> Callable[[int], str]:
    return lambda i: f"images/cc3m/{folder + i // 1000:05d}/{folder + i // 1000:05d}{i % 1000:04d}.png"


def _vg(first: int) -> Callable[[int], str]:
    return lambda i: f"images/vg/{first + i}.png"


def _coco(folder: str, first: int) -> Callable[[int], str]:
    return lambda i: f"images/coco/{folder}/COCO_{folder}_{first + i:012d}.png"


def _sbu(index: int) -> str:
    return f"data/pretrain/sbu/{index // SHARD:05d}.tar/{index:09d}.png"


def _nlvr(split: str) -> Callable[[int], str]:
    """Pictures are called by their set, and by the pair that first shows them."""
    return lambda i: f"images/nlvr2/{split}/{split}-{i // 4}-{i % 4 // 2 * 2}-img{i % 2}.png"


def wnid(index: int) -> str:
    """The folder name of an ImageNet-like class: `n00000001` for class 0."""
    return f"n{index + 1:08d}"


def _imagenet(index: int) -> str:
    label, number = index % 32, index // 32
    return f"data/imagenet/train/{wnid(label)}/{wnid(label)}_{number}.png"


def _flowers(first: int) -> Callable[[int], str]:
    return lambda i: f"data/flowers102/images/image_{first + i:05d}.png"


# every picture has a number of its own: the captions' and the questions' files share their image folders
SPLITS: dict[str, Split] = {
    "cc3m": Split("calibration", 3072, PRETRAIN, 0, _cc3m(0)),
    "vg": Split("calibration", 2048, REGIONS, 0, _vg(1)),
    "cc3m_more": Split("pretrain", 16384, PRETRAIN, 0, _cc3m(100)),
    "sbu": Split("pretrain", 4096, PRETRAIN, 0, _sbu),
    "vg_more": Split("pretrain", 10240, REGIONS, 0, _vg(10001)),
    "coco": Split("pretrain", 2048, PRETRAIN, 0, _coco("train2014", 400001)),
    "vg_val": Split("regions", 500, REGIONS, 0, _vg(70001)),
    "dense": Split("", 1 << 30, PRETRAIN, 0, "dense/{}".format),
    "itr_train": Split("itr", 3000, SHIFTED, 1, _coco("train2014", 1)),
    "itr_val": Split("itr", 500, SHIFTED, 1, _coco("val2014", 200001)),
    "itr_test": Split("itr", 1000, SHIFTED, 1, _coco("val2014", 300001)),
    "vqa_train": Split("vqa", 3000, SHIFTED, 1, _coco("train2014", 100001)),
    "vqa_val": Split("vqa", 500, SHIFTED, 1, _coco("val2014", 500001)),
    "vqa_vg": Split("vqa", 1000, SHIFTED, 1, _vg(50001)),
    "vqa_test": Split("vqa", 500, SHIFTED, 1, _coco("test2015", 600001)),
    "nlvr_train": Split("nlvr", 4800, SHIFTED, 1, _nlvr("train"), together=4),
    "nlvr_dev": Split("nlvr", 240, SHIFTED, 1, _nlvr("dev"), together=4),
    "nlvr_test": Split("nlvr", 800, SHIFTED, 1, _nlvr("test"), together=4),
    "imagenet": Split("imagenet", 32 * 250, PRETRAIN, 0, _imagenet, IMAGENET_LOOKS),
    "flowers_train": Split("flowers102", 24 * 60, SHIFTED, 1, _flowers(1), FLOWER_LOOKS),
    "flowers_val": Split("flowers102", 24 * 20, SHIFTED, 1, _flowers(10001), FLOWER_LOOKS),
    "flowers_test": Split("flowers102", 24 * 40, SHIFTED, 1, _flowers(20001), FLOWER_LOOKS),
}


def scene_for(split: str, index: int, seed: int = 0) -> Scene:
    """Scene number `index` of a split, drawn afresh: needs no file. `dense` holds as many as one asks for."""
    about = SPLITS[split]
    look = about.looks[index % len(about.looks)] if about.looks else None
    return draw_scene(Draws(seed, "scene", split, index), about.recipe, look)


def text_draws(split: str, index: int, seed: int) -> Draws:
    """The stream from which a scene's captions, regions or questions are drawn."""
    return Draws(seed, "text", split, index)


def scaled(split: str, scale: float) -> int:
    """How many scenes of a split a world of this scale holds: whole rounds of its classes or sets, at least one."""
    whole = len(SPLITS[split].looks) or SPLITS[split].together
    rounds = SPLITS[split].count // whole
    return whole * max(1, min(rounds, round(rounds * scale)))


def class_name(look: Look) -> str:
    """`striped circle`, `red circle`."""
    shape, colour, texture = look
    said = ((TEXTURES, texture), (COLOURS, colour), (SHAPES, shape))
    return " ".join(names[index] for names, index in said if index is not None)


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """InputError with the nearest name unless `name` is a part or a split of the mini world."""
    if name not in known:
        near, names = nearest(name, known), ", ".join(known)
        raise InputError(f"the mini world has no {kind} '{name}'{near}; its {kind}s are {names}")
