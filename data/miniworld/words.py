"""The words of the mini world: two for each noun and colour, and the phrases that say where things are.

Synonyms are drawn anew at every mention. The tables below are the whole grammar's lexicon: captions are
made from them, the parser reads with them, and `vocabulary` counts them.
"""

from __future__ import annotations

from data.miniworld.draws import Draws
from data.miniworld.scene import BACKGROUNDS, COLOURS, SHAPES, TEXTURES

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PROMPT = "a picture of"

# (singular, plural) pairs in the order of SHAPES; the first word of each row is the canonical one
NOUN_WORDS = (
    (("circle", "circles"), ("disc", "discs")),
    (("square", "squares"), ("block", "blocks")),
    (("triangle", "triangles"), ("wedge", "wedges")),
    (("cross", "crosses"), ("plus", "pluses")),
    (("star", "stars"), ("sparkle", "sparkles")),
    (("ring", "rings"), ("hoop", "hoops")),
    (("moon", "moons"), ("crescent", "crescents")),
    (("heart", "hearts"), ("valentine", "valentines")),
)
COLOUR_WORDS = (
    ("red", "crimson"),
    ("orange", "amber"),
    ("yellow", "golden"),
    ("green", "emerald"),
    ("blue", "azure"),
    ("purple", "violet"),
    ("white", "ivory"),
    ("black", "ebony"),
)
TEXTURE_WORDS = (("plain", "solid"), ("striped", "banded"), ("dotted", "spotted"), ("checked", "chequered"))
SIZE_WORDS = (("small", "little"), ("large", "big"))
NUMBER_WORDS = ("zero", "one", "two", "three", "four")  # captions say two to four; answers are digits

RELATIONS = ("left", "right", "above", "below")

# two phrasings: 0 for pretraining, 1 for the finetuning splits. A trailing "/" marks a phrase that comes
# before the thing it is about
RELATION_PHRASES = (
    (("left of",), ("right of",), ("above", "over"), ("below", "under", "beneath")),
    (
        ("to the left of", "is left of"),
        ("to the right of", "is right of"),
        ("higher than", "is above"),
        ("lower than", "is below"),
    ),
)
POSITION_PHRASES = (
    (
        ("in the top left",),
        ("in the top right",),
        ("in the bottom left",),
        ("in the bottom right",),
        ("in the middle",),
    ),
    (
        ("in the upper left corner", "the upper left corner holds/"),
        ("in the upper right corner", "the upper right corner holds/"),
        ("in the lower left corner", "the lower left corner holds/"),
        ("in the lower right corner", "the lower right corner holds/"),
        ("at the centre", "the centre holds/"),
    ),
)
BACKGROUND_PHRASES = (
    (
        ("on a wall",),
        ("in the sky", "in the air"),
        ("on grass", "on a lawn"),
        ("on sand", "on a beach"),
        ("on tiles", "on a floor"),
        ("at night", "in the dark"),
    ),
    (
        ("in front of a wall", "against a wall"),
        ("in front of the sky", "against the sky"),
        ("in front of grass", "against grass"),
        ("in front of sand", "against sand"),
        ("in front of tiles", "against tiles"),
        ("in front of the night", "against the night"),
    ),
)
# openings of captions by phrasing; the empty one starts with the things themselves
OPENINGS = (("",), ("", "we see", "this scene shows", "look at"))
JOINS = (("and", "with"), ("and", "along with"))
FILLERS = frozenset(["and", "with", "along", "we", "see", "this", "scene", "shows", "look", "at"])

# {} is filled with descriptions of things
QUESTION_PHRASES = {
    "count": ("how many {} are there", "how many {} can you see"),
    "colour": ("what colour is the {}", "what colour has the {}"),
    "shape": ("what shape is the {}", "what shape has the {}"),
    "texture": ("what texture has the {}", "which pattern has the {}"),
    "existence": ("is there {}", "can you see {}"),
    "relation": ("where is the {} relative to the {}", "where is the {} compared with the {}"),
    "background": ("what is the background", "what is behind the things"),
}
# about two pictures; every word is in `vocabulary`, which the minis were trained with
SIDES = ("left", "right")
STATEMENT_PHRASES = {
    "side": ("the {side} picture shows {}", "there is {} in the {side} scene"),
    "count": ("we see {}", "there {be} {}"),
}
ANSWERS = {
    "count": ("0", "1", "2", "3"),
    "colour": COLOURS,
    "shape": SHAPES,
    "texture": TEXTURES,
    "existence": ("yes", "no"),
    "relation": RELATIONS,
    "background": BACKGROUNDS,
}


def article(word: str) -> str:
    """`an` before a vowel's letter, else `a` (no word of the world is an exception)."""
    return "an" if word[0] in "aeiou" else "a"


def describe(
    draws: Draws,
    shape: int | None,
    colour: int | None = None,
    texture: int | None = None,
    size: int | None = None,
    plural: bool = False,
) -> str:
    """`large dotted crimson disc`: the named attributes, then the noun (`thing` without a shape)."""
    words = []
    if size is not None:
        words.append(draws.choice(SIZE_WORDS[size]))
    if texture is not None:
        words.append(draws.choice(TEXTURE_WORDS[texture]))
    if colour is not None:
        words.append(draws.choice(COLOUR_WORDS[colour]))
    words.append(("thing", "things")[plural] if shape is None else draws.choice(NOUN_WORDS[shape])[plural])
    return " ".join(words)


def vocabulary() -> list[str]:
    """The word vocabulary: BERT's special tokens (ids 0-4), then every word of the world, sorted."""
    texts = [PROMPT, "a an are thing things", *NUMBER_WORDS[1:], *FILLERS]
    texts += [phrase.replace("{}", "") for phrases in QUESTION_PHRASES.values() for phrase in phrases]
    texts += [word for row in NOUN_WORDS for pair in row for word in pair]
    texts += [word for table in (COLOUR_WORDS, TEXTURE_WORDS, SIZE_WORDS) for row in table for word in row]
    texts += [answer for answers in ANSWERS.values() for answer in answers]
    for tables in (RELATION_PHRASES, POSITION_PHRASES, BACKGROUND_PHRASES):
        texts += [phrase.rstrip("/") for style in tables for row in style for phrase in row]
    texts += [phrase for style in (*OPENINGS, *JOINS) for phrase in style]
    return [*SPECIAL, *sorted({word for text in texts for word in text.split()})]
