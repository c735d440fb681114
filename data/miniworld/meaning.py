"""What a caption says, as a small structure, and whether it holds in a scene.

A phrase names things by some of their attributes. With a count it claims that exactly so many things of the
scene answer to it and speaks of them all; with an article (count 0) it claims at least one and speaks of one.
A meaning is true when its phrases can be given different things so that all relations and positions hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from data.miniworld.scene import SIDE, Scene, Thing

CENTRE = SIDE / 2
# pixels: a caption is made only where it clearly holds (CLEAR); it is judged more leniently (FAIR)
CLEAR, FAIR = 7.0, 3.0
MIDDLE_CLEAR, MIDDLE_FAIR = 6.0, 10.0


@dataclass(frozen=True)
class Phrase:
    """A noun phrase: `count` things (0: "a", at least one) with these attributes (None: not named)."""

    count: int
    shape: int | None = None
    colour: int | None = None
    texture: int | None = None
    size: int | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether a thing answers to the description."""
        return (
            self.shape in (None, thing.shape)
            and self.colour in (None, thing.colour)
            and self.texture in (None, thing.texture)
            and self.size in (None, thing.size)
        )


@dataclass(frozen=True)
class Meaning:
    """Phrases in the order of the text, and what is said about them by their index."""

    phrases: tuple[Phrase, ...]
    relations: tuple[tuple[int, int, int], ...] = ()  # (phrase, index in RELATIONS, phrase)
    positions: tuple[tuple[int, int], ...] = ()  # (phrase, index in a row of POSITION_PHRASES)
    background: int | None = None


def related(first: Thing, relation: int, second: Thing, margin: float, dominant: bool = False) -> bool:
    """Whether `first` is left of (0), right of (1), above (2) or below (3) `second` by `margin` pixels.

    dominant: ask also that this direction be the greater part of their distance.
    """
    across, down = second.x - first.x, second.y - first.y
    gap, other = (across, down) if relation < 2 else (down, across)
    if relation % 2:
        gap = -gap
    return gap >= margin and (not dominant or gap >= abs(other) * 1.2)


def placed(thing: Thing, position: int, clear: bool) -> bool:
    """Whether a thing lies in a corner's quarter (0-3: top left, top right, bottom ...) or the middle (4)."""
    across, down = thing.x - CENTRE, thing.y - CENTRE
    if position == 4:
        reach = MIDDLE_CLEAR if clear else MIDDLE_FAIR
        return abs(across) <= reach and abs(down) <= reach
    margin = CLEAR if clear else 0.0
    return (across if position % 2 else -across) >= margin and (down if position >= 2 else -down) >= margin


def holds(meaning: Meaning, scene: Scene) -> bool:
    """Whether everything a caption says is true of a scene: its phrases can be given things of their own."""
    phrases = meaning.phrases
    too_many = sum(phrase.count or 1 for phrase in phrases) > len(scene.things)  # what is left is quickly tried out
    if too_many or meaning.background not in (None, scene.background):
        return False
    options: list[list[tuple[int, ...]]] = []
    for phrase in phrases:
        fitting = tuple(index for index, thing in enumerate(scene.things) if phrase.fits(thing))
        exactly = [fitting] if len(fitting) == phrase.count else []
        options.append(exactly if phrase.count else [(index,) for index in fitting])
    return any(
        len({index for group in groups for index in group}) == sum(map(len, groups))
        and _consistent(meaning, [[scene.things[index] for index in group] for group in groups])
        for groups in product(*options)
    )


def _consistent(meaning: Meaning, groups: list[list[Thing]]) -> bool:
    """Whether relations and positions hold, with these things for the phrases."""
    return all(
        related(one, relation, two, FAIR)
        for first, relation, second in meaning.relations
        for one in groups[first]
        for two in groups[second]
    ) and all(placed(thing, position, clear=False) for index, position in meaning.positions for thing in groups[index])


def matched_mentions(meaning: Meaning, scene: Scene) -> list[tuple[Phrase, bool]]:
    """Each thing that a caption mentions, by its phrase, and whether a thing of the scene can be assigned to it alone.

    A maximum matching by augmenting paths: a scene has four things at most, so speed does not matter.
    """
    mentions = [phrase for phrase in meaning.phrases for _ in range(phrase.count or 1)]
    owner: dict[int, int] = {}  # thing -> the mention that it is assigned to

    def assign(mention: int, tried: set[int]) -> bool:
        for index, thing in enumerate(scene.things):
            if index not in tried and mentions[mention].fits(thing):
                tried.add(index)
                if index not in owner or assign(owner[index], tried):
                    owner[index] = mention
                    return True
        return False

    # an augmenting path never leaves an assigned mention without a thing
    return [(phrase, assign(mention, set())) for mention, phrase in enumerate(mentions)]
