"""Region phrases with boxes: what stands where in a scene, for single things and some pairs."""

from __future__ import annotations

from dataclasses import dataclass

from data.miniworld.draws import Draws
from data.miniworld.meaning import Phrase
from data.miniworld.scene import Scene, Thing
from data.miniworld.words import SIZE_WORDS, TEXTURE_WORDS, article, describe

Box = tuple[int, int, int, int]  # x, y, width, height in pixels

PAIR = 0.4  # chance that a scene of several things also has a region around two of them
ATTRIBUTES = 0.3  # chance that size and texture stand apart, as Visual Genome keeps them


@dataclass(frozen=True)
class Region:
    """A phrase for one box; `things` are indices into the scene."""

    caption: str
    box: Box
    attributes: str | None
    things: tuple[int, ...]


def draw_regions(draws: Draws, scene: Scene, found: list[Box]) -> list[Region]:
    """One region for each thing that words can tell from the others, then perhaps one around a pair.

    A scene whose things all look alike gets one region around them all. found: `boxes(scene)`.
    """
    regions, named = [], []
    for index, thing in enumerate(scene.things):
        phrase = _unique(draws, thing, scene)
        if phrase is None:
            continue
        named.append((index, phrase))
        words, attributes = _words(draws, phrase)
        regions.append(Region(words, found[index], attributes, (index,)))
    if len(named) > 1 and draws.chance(PAIR):
        (a, first), (b, second) = draws.sample(named, 2)
        text = f"{_with_article(draws, first)} and {_with_article(draws, second)}"
        regions.append(Region(text, _around([found[a], found[b]]), None, (a, b)))
    if not regions:
        thing = scene.things[0]
        text = describe(draws, thing.shape, thing.colour, plural=True)
        regions.append(Region(text, _around(found), None, tuple(range(len(found)))))
    return regions


def _unique(draws: Draws, thing: Thing, scene: Scene) -> Phrase | None:
    """A description that fits only this thing: attributes are added until it does; None if none does."""
    texture = thing.texture if draws.chance(0.5) else None
    size = thing.size if draws.chance(0.35) else None
    colour = thing.colour if draws.chance(0.93) else None
    attempts = (
        (colour, texture, size),
        (thing.colour, texture, size),
        (thing.colour, thing.texture, size),
        (thing.colour, thing.texture, thing.size),
    )
    for attempt in attempts:
        phrase = Phrase(0, thing.shape, *attempt)
        if sum(phrase.fits(other) for other in scene.things) == 1:
            return phrase
    return None


def _words(draws: Draws, phrase: Phrase) -> tuple[str, str | None]:
    """The phrase with an article, or a bare noun phrase with its size and texture kept apart."""
    if (phrase.texture is None and phrase.size is None) or not draws.chance(ATTRIBUTES):
        return _with_article(draws, phrase), None
    apart = []
    if phrase.size is not None:
        apart.append(draws.choice(SIZE_WORDS[phrase.size]))
    if phrase.texture is not None:
        apart.append(draws.choice(TEXTURE_WORDS[phrase.texture]))
    return describe(draws, phrase.shape, phrase.colour), " ".join(apart)


def _with_article(draws: Draws, phrase: Phrase) -> str:
    words = describe(draws, phrase.shape, phrase.colour, phrase.texture, phrase.size)
    return f"{article(words)} {words}"


def _around(found: list[Box]) -> Box:
    left, top = min(box[0] for box in found), min(box[1] for box in found)
    right, bottom = max(box[0] + box[2] for box in found), max(box[1] + box[3] for box in found)
    return left, top, right - left, bottom - top
