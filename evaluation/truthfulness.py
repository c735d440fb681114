"""The truth of generated captions, which in the mini world can be checked against the scene itself.

A caption is parsed by the grammar and compared with the scene (`data/miniworld/checker.py`), so that a true caption in
other words than the references' counts, and a fluent false one does not. Only for images of the mini world.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from console.errors import InputError
from console.words import counted
from data.miniworld.checker import Verdict, check_caption, parse_caption
from data.miniworld.meaning import Phrase, matched_mentions
from data.miniworld.parts import SPLITS, scene_for
from data.miniworld.records import karpathy_id
from data.miniworld.scene import COLOURS, SHAPES, SIZES, TEXTURES, Scene
from data.miniworld.store import read_manifest
from data.records import Id
from evaluation.ptb import ptb_tokens


def load_scenes(root: Path | str, images: Iterable[Id]) -> dict[Id, Scene] | None:
    """The scenes of captioning images by image id; None if the folder `root` has no captions of the mini world.

    InputError for an id that is not among its images.
    """
    root = Path(root)
    if read_manifest(root, "ic") is None:
        return None
    itr, scenes = read_manifest(root, "itr"), {}  # its pictures are the captioned ones
    first = {split: karpathy_id(SPLITS[split].path(0)) for split in itr["splits"]}
    for image in sorted(set(images)):
        at = {name: image - first[name] for name in first} if isinstance(image, int) else {}
        split = next((name for name, count in itr["splits"].items() if 0 <= at.get(name, -1) < count), None)
        if split is None:
            raise InputError(f"image {image!r} is not among the captioned pictures of the mini world in {root}")
        scenes[image] = scene_for(split, at[split], itr["seed"])
    return scenes


@dataclass(frozen=True)
class Details:
    """A caption compared with its scene. true: all of it. there, not_there: the things that it mentions, in words."""

    true: bool
    there: list[str]
    not_there: list[str]


def details(caption: str, scene: Scene) -> Details:
    """Compare a caption with its scene, thing by thing."""
    text = " ".join(ptb_tokens(caption))
    things = [(_named(phrase), there) for phrase, there in matched_mentions(parse_caption(text).meaning, scene)]
    there, not_there = ([name for name, found in things if found is wanted] for wanted in (True, False))
    return Details(check_caption(text, scene).true, there, not_there)


def _named(phrase: Phrase) -> str:
    """The words of a thing in a phrase: its size, texture, colour and shape, as far as the phrase has them."""
    parts = ((SIZES, phrase.size), (TEXTURES, phrase.texture), (COLOURS, phrase.colour), (SHAPES, phrase.shape))
    return " ".join(names[value] for names, value in parts if value is not None)


def truthfulness(generated: Mapping[Id, str], scenes: Mapping[Id, Scene]) -> dict[str, float]:
    """In percent: `true`, captions that are wholly true; `present`, things mentioned that are there.

    generated, scenes: by the same image ids. Wholly true means that every word was understood and all of it holds. A
    caption that mentions a missing thing lowers `present`; a caption without any thing is not true.
    """
    verdicts = _verdicts(generated, scenes).values()
    return {
        "true": 100 * sum(verdict.true for verdict in verdicts) / len(verdicts),
        "present": 100 * _share_present(verdicts),
    }


def truth_of_images(generated: Mapping[Id, str], scenes: Mapping[Id, Scene]) -> dict[str, dict[Id, float]]:
    """The same for single captions, by metric and image id; `truthfulness` is 100 times their means.

    `present` is a ratio of two sums, r = P / M. The score of caption i, with p_i things there of m_i mentioned, is
    linear in both: r + (p_i - r m_i) / mean(m). So the mean is r exactly, its spread is that of r to first order, and a
    single score may lie outside of 0 to 1.
    """
    verdicts = _verdicts(generated, scenes)
    share = _share_present(verdicts.values())
    mean = sum(verdict.mentioned for verdict in verdicts.values()) / len(verdicts)
    present = {i: share + (v.present - share * v.mentioned) / mean if mean else 0.0 for i, v in verdicts.items()}
    return {"true": {i: float(verdict.true) for i, verdict in verdicts.items()}, "present": present}


def _verdicts(generated: Mapping[Id, str], scenes: Mapping[Id, Scene]) -> dict[Id, Verdict]:
    if not generated or generated.keys() != scenes.keys():
        raise InputError(
            f"{counted(len(generated), 'caption', 'is')} there for {counted(len(scenes), 'scene')}: give one for each "
            "scene"
        )
    return {i: check_caption(" ".join(ptb_tokens(text)), scenes[i]) for i, text in generated.items()}


def _share_present(verdicts: Collection[Verdict]) -> float:
    return sum(verdict.present for verdict in verdicts) / max(1, sum(verdict.mentioned for verdict in verdicts))
