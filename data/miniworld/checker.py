"""Judge captions by what they say: read them back, compare them with the truth of a scene.

`parse_caption` reads every caption of the grammar, of either phrasing, and makes the best of a model's
nonsense: what it cannot read it reports. `check_caption` gives an honest caption metric beside n-gram scores:
how many of the mentioned things are there, and whether the caption is wholly true.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from console.errors import InputError, explain_os_error
from data.miniworld.meaning import Meaning, Phrase, holds, mentioned, present
from data.miniworld.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing
from data.miniworld.words import (
    BACKGROUND_PHRASES,
    FILLERS,
    NOUN_WORDS,
    NUMBER_WORDS,
    POSITION_PHRASES,
    RELATION_PHRASES,
    attribute_words,
)

JOINTS = frozenset(("and", "with", "along"))  # a caption that ends in one is unfinished


@dataclass(frozen=True)
class Parsed:
    """What could be read of a caption, and the words that could not."""

    meaning: Meaning
    unparsed: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """A caption held against a scene: things mentioned, how many of them are there, wholly true or not."""

    mentioned: int
    present: int
    true: bool


def check_caption(text: str, scene: Scene) -> Verdict:
    """Hold any text against a scene. Wholly true means: all of it was understood and all of it holds."""
    parsed = parse_caption(text)
    meaning = parsed.meaning
    true = bool(meaning.phrases) and not parsed.unparsed and holds(meaning, scene)
    return Verdict(mentioned(meaning), present(meaning, scene), true)


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
        table, longest = _fixed_phrases()
        for length in range(min(longest, len(self.words) - self.at), 0, -1):
            words = tuple(self.words[self.at : self.at + length])
            if words not in table:
                continue
            kind, value = table[words]
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
        start, at = self.at, self.at
        count, wants_plural, said = 0, None, {}
        if self.words[at] in ("a", "an"):
            wants_plural, at = False, at + 1
        elif self.words[at] in NUMBER_WORDS[1:]:
            count = NUMBER_WORDS.index(self.words[at])
            wants_plural, at = count > 1, at + 1
        while at < len(self.words) and self.words[at] in _adjectives():
            kind, value = _adjectives()[self.words[at]]
            if kind in said:
                break
            said[kind] = value
            at += 1
        if at == len(self.words) or self.words[at] not in _nouns():
            return False
        shape, plural = _nouns()[self.words[at]]
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
        assert self.at > start
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


@functools.cache
def _fixed_phrases() -> tuple[dict[tuple[str, ...], tuple[str, int]], int]:
    table: dict[tuple[str, ...], tuple[str, int]] = {}
    kinds = (
        ("relation", RELATION_PHRASES),
        ("position", POSITION_PHRASES),
        ("background", BACKGROUND_PHRASES),
    )
    for kind, phrasings in kinds:
        for value, phrase in ((v, p) for rows in phrasings for v, row in enumerate(rows) for p in row):
            before = phrase.endswith("/")
            words = tuple(phrase.rstrip("/").split())
            table[words] = ("before" if before else kind, value)
            if words[0] == "is":
                table["are", *words[1:]] = (kind, value)
    return table, max(len(words) for words in table)


@functools.cache
def _adjectives() -> dict[str, tuple[str, int]]:
    return attribute_words()


@functools.cache
def _nouns() -> dict[str, tuple[int, bool]]:
    """Every noun with its shape and whether it is a plural."""
    return {
        word: (shape, bool(plural))
        for shape, synonyms in enumerate(NOUN_WORDS)
        for pair in synonyms
        for plural, word in enumerate(pair)
    }


def retrieval_ceiling(captions: Sequence[Sequence[Meaning]], scenes: Sequence[Scene]) -> float:
    """Text to image R@1, in percent, of a judge who knows the whole truth and guesses among what is left.

    captions[i] are the meanings of scene i's captions; a caption that holds in n scenes is found with 1/n.
    """
    hits = [1 / sum(holds(meaning, scene) for scene in scenes) for meanings in captions for meaning in meanings]
    return 100 * sum(hits) / len(hits)


def load_truth(root: Path | str, split: str) -> dict[str, Scene]:
    """The scenes of a split by image path (relative to the world's root), from `truth/<split>.json`."""
    path = Path(root) / "truth" / f"{split}.json"
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise explain_os_error(error, f"read {path} (has its part been generated?)") from error
    try:
        return {image: _scene(record) for image, record in records.items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no truth file of the mini world; generate its part anew") from error


def _scene(record: dict) -> Scene:
    things = tuple(
        Thing(
            SHAPES.index(o["shape"]),
            COLOURS.index(o["colour"]),
            TEXTURES.index(o["texture"]),
            SIZES.index(o["size"]),
            *(o[name] for name in ("x", "y", "radius", "turn")),
            tuple(o["tint"]),
            o["phase"],
        )
        for o in record["objects"]
    )
    background = BACKGROUNDS.index(record["background"])
    return Scene(background, tuple(record["tint"]), record["clutter"], int(record["key"], 16), things)
