"""Captions and region phrases by grammar, each with its meaning.

Three kinds: counts ("two red circles and a blue star"), relations ("a red disc left of a plain star") and
positions ("a ring in the top left"). Size, texture and, seldom, colour are left out at random. There are two
phrasings of the same nouns and adjectives: 0 in pretraining, 1 in the finetuning splits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from data.miniworld.draws import Draws
from data.miniworld.meaning import CLEAR, Meaning, Phrase, placed, related
from data.miniworld.scene import Box, Scene, Thing
from data.miniworld.words import (
    BACKGROUND_PHRASES,
    JOINS,
    NUMBER_WORDS,
    OPENINGS,
    POSITION_PHRASES,
    RELATION_PHRASES,
    SIZE_WORDS,
    TEXTURE_WORDS,
    article,
    describe,
)

LONGEST = 25  # words; with [CLS], [SEP] and a prompt of three words this fills 30 tokens
KINDS = (4, 3, 3)  # how often: counts, relations, positions
NAMES_COLOUR, NAMES_TEXTURE, NAMES_SIZE, NAMES_BACKGROUND = 0.93, 0.5, 0.35, 0.4


PAIR = 0.4  # chance that a scene of several things also has a region around two of them
APART = 0.3  # chance that size and texture stand apart, as Visual Genome keeps them


@dataclass(frozen=True)
class Caption:
    """A caption in lower-case words without punctuation, and what it says."""

    text: str
    meaning: Meaning


@dataclass(frozen=True)
class Region:
    """A phrase for one box; `things` are indices into the scene."""

    caption: str
    box: Box
    attributes: str | None
    things: tuple[int, ...]


def draw_captions(draws: Draws, scene: Scene, phrasing: int, count: int) -> list[Caption]:
    """`count` true captions of a scene, all different; phrasing 0 is pretraining's, 1 that of the finetuning splits."""
    captions: dict[str, Caption] = {}
    while len(captions) < count:
        caption = _draw(draws, scene, phrasing)
        if len(caption.text.split()) <= LONGEST:
            captions.setdefault(caption.text, caption)
    return list(captions.values())


def _draw(draws: Draws, scene: Scene, phrasing: int) -> Caption:
    units = draws.shuffled(_units(scene))
    phrases = [_phrase(draws, unit, scene) for unit in units]
    if len(units) > 2 and draws.chance(0.25):  # not everything is always worth a word
        units.pop(), phrases.pop()
    kind = draws.weighted(KINDS)
    relations: tuple[tuple[int, int, int], ...] = ()
    positions: tuple[tuple[int, int], ...] = ()
    if kind == 1 and len(units) > 1:
        clear = [r for r in range(4) if all(related(a, r, b, CLEAR, True) for a in units[0] for b in units[1])]
        relations = tuple((0, relation, 1) for relation in clear)
    elif kind == 2:
        places = [
            (index, position)
            for index, unit in enumerate(units[:2])
            for position in range(5)
            if all(placed(thing, position, clear=True) for thing in unit)
        ]
        positions = tuple(places)
    background = scene.background if draws.chance(NAMES_BACKGROUND) else None
    meaning = Meaning(tuple(phrases), relations, positions, background)
    return Caption(_say(draws, meaning, phrasing), meaning)


def _units(scene: Scene) -> list[list[Thing]]:
    """Things of one shape and colour are spoken of together."""
    units: dict[tuple[int, int], list[Thing]] = {}
    for thing in scene.things:
        units.setdefault((thing.shape, thing.colour), []).append(thing)
    return list(units.values())


def _phrase(draws: Draws, unit: list[Thing], scene: Scene) -> Phrase:
    """Name the shape and some of what the unit's things have in common."""
    first = unit[0]
    texture = first.texture if draws.chance(NAMES_TEXTURE) and _shared(unit, "texture") else None
    size = first.size if draws.chance(NAMES_SIZE) and _shared(unit, "size") else None
    colour = first.colour if draws.chance(NAMES_COLOUR) else None
    phrase = Phrase(len(unit) if len(unit) > 1 else 0, first.shape, colour, texture, size)
    if phrase.count and sum(phrase.fits(thing) for thing in scene.things) != phrase.count:
        return replace(phrase, colour=first.colour)  # without it the count would be wrong
    return phrase


def _shared(unit: list[Thing], attribute: str) -> bool:
    return len({getattr(thing, attribute) for thing in unit}) == 1


def _say(draws: Draws, meaning: Meaning, phrasing: int) -> str:
    """Put a meaning into words."""
    places = dict(meaning.positions)
    related_to_next = {first: relation for first, relation, _ in meaning.relations}
    parts: list[str] = []
    sentence = False  # a verb of its own leaves no room for an opening: "we see the centre holds a ring"
    for index, phrase in enumerate(meaning.phrases):
        words = say_phrase(draws, phrase)
        place = draws.choice(POSITION_PHRASES[phrasing][places[index]]) if index in places else ""
        if place.endswith("/"):
            words = f"{place[:-1]} {words}"
            sentence = True
        elif place:
            words = f"{words} {place}"
        parts.append(words)
        if index in related_to_next:
            relation = draws.choice(RELATION_PHRASES[phrasing][related_to_next[index]])
            if relation.startswith("is "):
                sentence = True
                relation = f"are {relation[3:]}" if phrase.count > 1 else relation
            parts.append(relation)
        elif index + 1 < len(meaning.phrases):
            parts.append("and" if sentence else draws.choice(JOINS[phrasing]))
    text = " ".join(parts)
    opening = draws.choice(OPENINGS[phrasing])
    if opening and not sentence:
        text = f"{opening} {text}"
    if meaning.background is not None:
        text += f" {draws.choice(BACKGROUND_PHRASES[phrasing][meaning.background])}"
    return text


def say_phrase(draws: Draws, phrase: Phrase) -> str:
    """`two small red discs`, `an amber ring`."""
    plural = phrase.count > 1
    words = describe(draws, phrase.shape, phrase.colour, phrase.texture, phrase.size, plural)
    return f"{NUMBER_WORDS[phrase.count] if phrase.count else article(words)} {words}"


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
        text = f"{say_phrase(draws, first)} and {say_phrase(draws, second)}"
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
    if (phrase.texture is None and phrase.size is None) or not draws.chance(APART):
        return say_phrase(draws, phrase), None
    apart = []
    if phrase.size is not None:
        apart.append(draws.choice(SIZE_WORDS[phrase.size]))
    if phrase.texture is not None:
        apart.append(draws.choice(TEXTURE_WORDS[phrase.texture]))
    return describe(draws, phrase.shape, phrase.colour), " ".join(apart)


def _around(found: list[Box]) -> Box:
    left, top = min(box[0] for box in found), min(box[1] for box in found)
    right, bottom = max(box[0] + box[2] for box in found), max(box[1] + box[3] for box in found)
    return left, top, right - left, bottom - top
