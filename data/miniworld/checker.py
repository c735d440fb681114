"""Check captions: parse them, and compare them with the true scene.

`parse_caption` reads every caption of the grammar, of either phrasing, and makes the best of a model's
nonsense: it reports what it cannot parse. `check_caption` is a caption metric that n-gram scores do not replace:
how many of the mentioned things are in the scene, and whether the caption is wholly true.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.miniworld.meaning import Meaning, Phrase, holds, matched_mentions
from data.miniworld.scene import Scene
from data.miniworld.words import (
    BACKGROUND_PHRASES,
    COLOUR_WORDS,
    FILLERS,
    NOUN_WORDS,
    NUMBER_WORDS,
    POSITION_PHRASES,
    RELATION_PHRASES,
    SIZE_WORDS,
    TEXTURE_WORDS,
)

JOINTS = frozenset(("and", "with", "along"))  # a caption that ends in one is unfinished

ADJECTIVES = {
    word: (kind, index)
    for kind, table in (("colour", COLOUR_WORDS), ("texture", TEXTURE_WORDS), ("size", SIZE_WORDS))
    for index, synonyms in enumerate(table)
    for word in synonyms
}  # crimson -> ("colour", 0)
NOUNS = {
    word: (shape, bool(plural))
    for shape, synonyms in enumerate(NOUN_WORDS)
    for pair in synonyms
    for plural, word in enumerate(pair)
}  # discs -> (0, True)


def _fixed_phrases() -> dict[tuple[str, ...], tuple[str, int]]:
    """Words -> what they say: ("relation", 0), ("position", 4), ("before", 4) of a thing to come, ("background", 1)."""
    table: dict[tuple[str, ...], tuple[str, int]] = {}
    kinds = (("relation", RELATION_PHRASES), ("position", POSITION_PHRASES), ("background", BACKGROUND_PHRASES))
    for kind, phrasings in kinds:
        for value, phrase in ((v, p) for rows in phrasings for v, row in enumerate(rows) for p in row):
            words = tuple(phrase.rstrip("/").split())
            table[words] = ("before" if phrase.endswith("/") else kind, value)
            if words[0] == "is":
                table["are", *words[1:]] = (kind, value)
    return table


FIXED = _fixed_phrases()
LONGEST = max(map(len, FIXED))


@dataclass(frozen=True)
class Parsed:
    """What could be read of a caption, and the words that could not."""

    meaning: Meaning
    unparsed: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """A caption compared with a scene: things mentioned, how many of them are in it, whether it is wholly true."""

    mentioned: int
    present: int
    true: bool


def check_caption(text: str, scene: Scene) -> Verdict:
    """Compare any text with a scene. Wholly true: all of it could be parsed, and all of it holds."""
    parsed = parse_caption(text)
    meaning = parsed.meaning
    true = bool(meaning.phrases) and not parsed.unparsed and holds(meaning, scene)
    there = [found for _, found in matched_mentions(meaning, scene)]
    return Verdict(len(there), sum(there), true)


def parse_caption(text: str) -> Parsed:
    """Read a caption (lower-case words): things, counts, relations, positions, background."""
    return _Reader(text.split()).read()


class _Reader:
    """One pass over the words, longest known phrase first; `open` is what still waits for a thing."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.at = 0
        self.phrases: list[Phrase] = []
        self.relations: list[tuple[int, int, int]] = []
        self.positions: list[tuple[int, int]] = []
        self.background: int | None = None
        self.unparsed: list[str] = []
        self.open: tuple[str, int, tuple[str, ...]] | None = None
        self.after_thing = False

    def read(self) -> Parsed:
        while self.at < len(self.words):
            if not (self._fixed_phrase() or self._noun_phrase()):
                self._other_word()
        self._drop_open()
        if self.words and self.words[-1] in JOINTS:
            self.unparsed.append(self.words[-1])
        meaning = Meaning(tuple(self.phrases), tuple(self.relations), tuple(self.positions), self.background)
        return Parsed(meaning, tuple(self.unparsed))

    def _fixed_phrase(self) -> bool:
        """A relation, a position or a background."""
        for length in range(min(LONGEST, len(self.words) - self.at), 0, -1):
            words = tuple(self.words[self.at : self.at + length])
            if words not in FIXED:
                continue
            kind, value = FIXED[words]
            self.at += length
            self._drop_open()
            if kind == "background" and self.background in (None, value):
                self.background = value
            elif kind == "position" and self.after_thing:
                self.positions.append((len(self.phrases) - 1, value))
            elif kind == "before" or (kind == "relation" and self.after_thing):
                self.open = (kind, value, words)
            else:
                self.unparsed.extend(words)
            self.after_thing = False
            return True
        return False

    def _noun_phrase(self) -> bool:
        """[a | two ...] adjectives noun. Words before a missing noun count as not understood."""
        at = self.at
        count, wants_plural, said = 0, None, {}
        if self.words[at] in ("a", "an"):
            wants_plural, at = False, at + 1
        elif self.words[at] in NUMBER_WORDS[1:]:
            count = NUMBER_WORDS.index(self.words[at])
            wants_plural, at = count > 1, at + 1
        while at < len(self.words) and self.words[at] in ADJECTIVES:
            kind, value = ADJECTIVES[self.words[at]]
            if kind in said:
                break
            said[kind] = value
            at += 1
        if at == len(self.words) or self.words[at] not in NOUNS:
            return False
        shape, plural = NOUNS[self.words[at]]
        if wants_plural not in (None, plural):  # "a circles", "two disc"
            self.unparsed.append(self.words[at])
        self.phrases.append(Phrase(count, shape, **said))
        self.at, self.after_thing = at + 1, True
        index = len(self.phrases) - 1
        if self.open is not None:
            kind, value, _ = self.open
            if kind == "relation":
                self.relations.append((index - 1, value, index))
            else:
                self.positions.append((index, value))
            self.open = None
        return True

    def _other_word(self) -> None:
        word = self.words[self.at]
        self.at += 1
        self._drop_open()
        self.after_thing = False
        if word not in FILLERS:
            self.unparsed.append(word)

    def _drop_open(self) -> None:
        """A relation or position that never met its thing was not understood."""
        if self.open is not None:
            self.unparsed.extend(self.open[2])
            self.open = None
