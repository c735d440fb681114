"""Statements about two scenes, each true of one pair and false of another one, so that its words give nothing away.

A set has four scenes and four pairs: the first two scenes, the same exchanged, the other two, the same exchanged. Two
kinds of statements: what the left or the right picture shows, and how many things of a look both show together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from data.miniworld.draws import Draws
from data.miniworld.meaning import Phrase
from data.miniworld.scene import Scene, Thing
from data.miniworld.words import NUMBER_WORDS, SIDES, STATEMENT_PHRASES, article, describe

SCENES, PAIRS = 4, ((0, 1), (1, 0), (2, 3), (3, 2))
"""Scenes of a set; its pairs, each the left and the right scene."""

LOOKS = (("shape", "colour"), ("shape", "colour"), ("shape",), ("colour",))
"""What names a thing, the first one twice as often as each other."""

TRIES = 200


@dataclass(frozen=True)
class Statement:
    """A text in lower-case words, its kind (a key of `STATEMENT_PHRASES`), a pair of which it is true, one it is not.

    true_of, false_of: numbers in `PAIRS`.
    """

    text: str
    kind: str
    true_of: int
    false_of: int


def draw_statements(draws: Draws, scenes: Sequence[Scene], count: int) -> list[Statement]:
    """Up to `count` different statements about the four scenes of a set, the kinds in turn."""
    found: dict[str, Statement] = {}
    kinds = {"side": _side, "count": _count}
    for number in range(TRIES):
        if len(found) == count:
            break
        statement = kinds[list(kinds)[number % len(kinds)]](draws, scenes)
        if statement is not None:
            found.setdefault(statement.text, statement)
    return list(found.values())


def shown(scenes: Sequence[Scene], pair: int, side: int | None = None) -> list[Thing]:
    """The things of a pair's left (0) or right (1) scene, or of both."""
    chosen = PAIRS[pair] if side is None else (PAIRS[pair][side],)
    return [thing for number in chosen for thing in scenes[number].things]


def _look(draws: Draws, things: Sequence[Thing]) -> Phrase:
    """What one of the things looks like."""
    thing = draws.choice(things)
    return Phrase(0, **{name: getattr(thing, name) for name in draws.choice(LOOKS)})


def _side(draws: Draws, scenes: Sequence[Scene]) -> Statement | None:
    """`the left picture shows a red disc`; in half of the cases the false pair has the same scenes exchanged."""
    pair, side = draws.integer(0, len(PAIRS) - 1), draws.integer(0, 1)
    other = pair ^ 1 if draws.chance(0.5) else (pair ^ 2) ^ draws.integer(0, 1)
    look = _look(draws, shown(scenes, pair, side))
    if any(map(look.fits, shown(scenes, other, side))):
        return None
    words = describe(draws, look.shape, look.colour)
    text = draws.choice(STATEMENT_PHRASES["side"]).format(f"{article(words)} {words}", side=SIDES[side])
    return Statement(text, "side", pair, other)


def _count(draws: Draws, scenes: Sequence[Scene]) -> Statement | None:
    """`we see three discs`, in both scenes together; in half of the cases the false pair has some, but not as many."""
    pair = draws.integer(0, len(PAIRS) - 1)
    other = (pair ^ 2) ^ draws.integer(0, 1)
    look = _look(draws, shown(scenes, pair))
    number, wrong = (sum(map(look.fits, shown(scenes, which))) for which in (pair, other))
    if number == wrong or number >= len(NUMBER_WORDS) or (wrong == 0 and draws.chance(0.5)):
        return None
    words = f"{NUMBER_WORDS[number]} {describe(draws, look.shape, look.colour, plural=number > 1)}"
    text = draws.choice(STATEMENT_PHRASES["count"]).format(words, be="is" if number == 1 else "are")
    return Statement(text, "count", pair, other)
