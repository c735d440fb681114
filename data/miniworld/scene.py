"""Scenes of the mini world: what is in a picture, before it is painted or put into words.

A scene is 64x64 pixels with one to four things (shape, colour, texture, size) on one of six backgrounds.
Two distributions exist. `PRETRAIN` never pairs the shapes and colours of `HELD_OUT`; `SHIFTED`, for the
finetuning splits, prefers exactly those pairs, other backgrounds, other textures, more clutter and more
things, so that finetuning asks for something that pretraining did not already give.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.miniworld.draws import Draws

SIDE = 64  # pixels

SHAPES = ("circle", "square", "triangle", "cross", "star", "ring", "moon", "heart")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "large")
NAMES = {"shape": SHAPES, "colour": COLOURS, "texture": TEXTURES, "size": SIZES}  # attribute of a thing -> its values
BACKGROUNDS = ("wall", "sky", "grass", "sand", "tiles", "night")

# one colour of each shape and one shape of each colour: no word is rare in pretraining, only eight pairs are
HELD_OUT = tuple((shape, (3 * shape + 1) % 8) for shape in range(8))
PAIRS = tuple((shape, colour) for shape in range(8) for colour in range(8))

TINTS = ((196, 178, 156), (138, 172, 204), (122, 150, 104), (188, 168, 122), (166, 132, 122), (78, 82, 120))
RADII = ((26, 32), (40, 52))  # in quarter pixels: small things are 13-16 pixels wide, large ones 20-26
TURNS = 9  # rotations by -20 to 20 degrees in steps of 5
OVERLAP = 0.92  # two centres are at least this share of their radii's sum apart


Look = tuple[int, int | None, int | None]  # shape, colour, texture; None: any
Box = tuple[int, int, int, int]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Thing:
    """One object. Ids index `SHAPES`, `COLOURS`, `TEXTURES`, `SIZES`; x, y, radius are pixels (quarters)."""

    shape: int
    colour: int
    texture: int
    size: int
    x: float
    y: float
    radius: float
    turn: int  # index of the rotation, 0..TURNS-1
    tint: tuple[int, int, int]  # jitter added to red, green, blue
    phase: int  # 0..255, where the texture starts and which way it runs


@dataclass(frozen=True)
class Scene:
    """A picture: things are painted in their order, the last on top."""

    background: int
    tint: tuple[int, int, int]  # red, green, blue of the background
    clutter: int  # small marks scattered on the background
    key: int  # names the noise of this scene
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Recipe:
    """A distribution over scenes; all weights are integers."""

    things: tuple[int, int, int, int, int]  # weights of scenes of n things
    pairs: tuple[int, ...]  # weights of the pairs of shape and colour, PAIRS
    textures: tuple[int, ...]  # weights of TEXTURES
    backgrounds: tuple[int, ...]  # weights of BACKGROUNDS
    clutter: tuple[int, int]  # fewest and most small marks
    tint_jitter: int  # largest change of a colour's channel


def _pair_weights(held_out: int) -> tuple[int, ...]:
    return tuple(held_out if pair in HELD_OUT else 1 for pair in PAIRS)


PRETRAIN = Recipe((0, 0, 9, 9, 2), _pair_weights(0), (4, 3, 2, 2), (5, 5, 5, 5, 1, 1), (2, 5), 10)
REGIONS = Recipe((0, 3, 9, 8, 0), _pair_weights(0), (4, 3, 2, 2), (5, 5, 5, 5, 1, 1), (2, 5), 10)
SHIFTED = Recipe((0, 0, 5, 7, 8), _pair_weights(4), (2, 2, 3, 3), (2, 2, 2, 2, 4, 4), (5, 10), 18)
REPEATS = (0.0, 0.0, 0.2, 0.35, 0.4)  # chance that a scene of n things repeats one shape and colour


def draw_scene(draws: Draws, recipe: Recipe, only: Look | None = None) -> Scene:
    """A scene from `recipe`; `only` asks for one thing of this look."""
    background = draws.weighted(recipe.backgrounds)
    jitter = recipe.tint_jitter
    lift = draws.integer(-jitter, jitter)
    tint = tuple(max(40, value + lift + draws.integer(-6, 6)) for value in TINTS[background])
    if only is None:
        looks = _draw_looks(draws, recipe)
    else:
        shape, colour, texture = only
        if colour is None:
            colour = draws.weighted(recipe.pairs[8 * shape : 8 * shape + 8])
        looks = [(shape, colour, draws.weighted(recipe.textures) if texture is None else texture)]
    return Scene(
        background=background,
        tint=tint,
        clutter=draws.integer(*recipe.clutter),
        key=draws.bits(),
        things=_place(draws, looks),
    )


def _draw_looks(draws: Draws, recipe: Recipe) -> list[tuple[int, int, int]]:
    """(shape, colour, texture) of every thing: pairs differ, but for the one that is repeated on purpose."""
    count = draws.weighted(recipe.things)
    copies = 1
    if draws.chance(REPEATS[count]):
        copies = 3 if count == 4 and draws.chance(0.35) else 2
    pairs: list[tuple[int, int]] = []
    while len(pairs) < count - copies + 1:
        pair = PAIRS[draws.weighted(recipe.pairs)]
        if pair not in pairs:
            pairs.append(pair)
    looks = [(*pair, draws.weighted(recipe.textures)) for pair in pairs]
    for _ in range(copies - 1):
        texture = looks[0][2] if draws.chance(0.6) else draws.weighted(recipe.textures)
        looks.append((*pairs[0], texture))
    return draws.shuffled(looks)


def _place(draws: Draws, looks: list[tuple[int, int, int]]) -> tuple[Thing, ...]:
    """Sizes and places with little overlap: start again when a thing does not fit, after eight attempts all small."""
    for attempt in range(1000):
        things: list[Thing] = []
        for shape, colour, texture in looks:
            size = 0 if attempt >= 8 else draws.integer(0, 1)
            thing = _place_one(draws, shape, colour, texture, size, things)
            if thing is None:
                break
            things.append(thing)
        else:
            return tuple(things)
    raise AssertionError(f"{len(looks)} small things found no room in {SIDE}x{SIDE} pixels")


def _place_one(draws: Draws, shape: int, colour: int, texture: int, size: int, others: list[Thing]) -> Thing | None:
    radius = draws.integer(*RADII[size]) / 4
    margin = int(radius * 4.6) + 4  # in quarters; the widest rotated shape reaches 1.15 radii
    turn, phase = draws.integer(0, TURNS - 1), draws.integer(0, 255)
    tint = (draws.integer(-12, 12), draws.integer(-12, 12), draws.integer(-12, 12))
    for _ in range(24):
        x, y = draws.integer(margin, 4 * SIDE - margin) / 4, draws.integer(margin, 4 * SIDE - margin) / 4
        if all(
            (x - o.x) * (x - o.x) + (y - o.y) * (y - o.y)
            >= (OVERLAP * (radius + o.radius)) * (OVERLAP * (radius + o.radius))
            for o in others
        ):
            return Thing(shape, colour, texture, size, x, y, radius, turn, tint, phase)
    return None
