"""Paint a scene: things from inequalities at twice the resolution, backgrounds from patterns and noise.

Only sums, products, comparisons and integer arithmetic touch a pixel, element by element, so the same scene
gives the same bytes on every machine (no sine or exponential, whose last digits differ between libraries).
"""

from __future__ import annotations

import functools

import numpy as np

from data.miniworld.draws import Draws
from data.miniworld.scene import SIDE, Box, Scene, Thing

# base colour and the colour of its stripes, dots or checks: darker for light colours, lighter for dark ones
PAINTS = (
    ((216, 30, 36), (104, 0, 10)),  # red
    ((246, 134, 14), (150, 66, 0)),  # orange
    ((248, 230, 40), (160, 132, 0)),  # yellow
    ((26, 158, 52), (0, 74, 18)),  # green
    ((34, 78, 224), (140, 176, 255)),  # blue
    ((142, 34, 182), (226, 150, 250)),  # purple
    ((252, 252, 252), (112, 112, 118)),  # white
    ((14, 14, 16), (150, 150, 154)),  # black
)
# cosine and sine of -20 to 20 degrees: literals, because libraries differ in the last digit
ROTATIONS = (
    (0.9396926207859084, -0.3420201433256687),
    (0.9659258262890683, -0.25881904510252074),
    (0.984807753012208, -0.17364817766693033),
    (0.9961946980917455, -0.08715574274765817),
    (1.0, 0.0),
    (0.9961946980917455, 0.08715574274765817),
    (0.984807753012208, 0.17364817766693033),
    (0.9659258262890683, 0.25881904510252074),
    (0.9396926207859084, 0.3420201433256687),
)
STRIPES, DOTS, CHECKS = (5.0, 6.5), (5.0, 6.5), (3.5, 4.75)  # period or cell in pixels, small and large
_TIPS = (
    (0.0, -1.0),
    (0.9510565, -0.309017),
    (-0.9510565, -0.309017),
    (0.5877853, 0.809017),
    (-0.5877853, 0.809017),
)
_SUBPIXELS = (np.arange(2 * SIDE) + 0.5) / 2  # their centres, in pixels


def paint(scene: Scene) -> np.ndarray:
    """The picture of a scene, uint8 [64, 64, 3] (row, column, red-green-blue)."""
    canvas = _background(scene)
    for thing, (rows, columns, inside, marked) in zip(scene.things, _stamps(scene), strict=True):
        base, mark = PAINTS[thing.colour]
        for channel in range(3):
            plane = canvas[channel, rows, columns]
            ground = plane * (4 - inside)
            ground += inside * np.int16(base[channel] + thing.tint[channel])
            if thing.texture:
                ground += marked * np.int16(mark[channel] - base[channel])
            ground += 2
            canvas[channel, rows, columns] = ground >> 2
    picture = np.clip(canvas, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(picture.transpose(1, 2, 0))


def visible(scene: Scene) -> np.ndarray:
    """Which thing is seen at each pixel: int8 [64, 64], its index in the scene, -1 for the background."""
    seen = np.full((SIDE, SIDE), -1, dtype=np.int8)
    for index, (rows, columns, inside, _) in enumerate(_stamps(scene)):
        seen[rows, columns][inside >= 2] = index
    return seen


def boxes(scene: Scene) -> list[Box]:
    """For each thing the tight box around its visible pixels."""
    seen, found = visible(scene), []
    for index in range(len(scene.things)):
        mask = seen == index
        rows, columns = mask.any(1).tobytes(), mask.any(0).tobytes()  # a byte a row: find is quick
        x, y = columns.find(1), rows.find(1)
        found.append((x, y, columns.rfind(1) + 1 - x, rows.rfind(1) + 1 - y))
    return found


def dense_labels(scene: Scene, patch: int) -> np.ndarray:
    """What each patch shows: int64 [grid * grid, 4] of (shape, colour, texture, size) ids, row by row.

    patch: side of a patch in pixels. The thing covering most of a patch names it; -1 stands where things
    cover less than half of the patch together.
    """
    grid = SIDE // patch
    tiles = visible(scene).reshape(grid, patch, grid, patch).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    areas = np.stack([(tiles == index).sum(1) for index in range(len(scene.things))])  # [things, patches]
    looks = np.array([(t.shape, t.colour, t.texture, t.size) for t in scene.things], dtype=np.int64)
    labels = looks[areas.argmax(0)]
    labels[2 * areas.sum(0) < patch * patch] = -1
    return labels


@functools.lru_cache(maxsize=1)  # a scene is painted and then asked for its boxes or labels
def _stamps(scene: Scene) -> list[tuple[slice, slice, np.ndarray, np.ndarray]]:
    return [_stamp(thing) for thing in scene.things]


def _stamp(thing: Thing) -> tuple[slice, slice, np.ndarray, np.ndarray]:
    """Where a thing lies: rows, columns, int16 counts (0..4 subpixels) inside it and inside its marks."""
    reach = thing.radius * 1.15 + 1
    left, right = max(0, int(thing.x - reach)), min(SIDE, int(thing.x + reach) + 1)
    top, bottom = max(0, int(thing.y - reach)), min(SIDE, int(thing.y + reach) + 1)
    across = _SUBPIXELS[2 * left : 2 * right] - thing.x
    down = (_SUBPIXELS[2 * top : 2 * bottom] - thing.y)[:, None]
    cosine, sine = ROTATIONS[thing.turn]
    u, v = across * cosine + down * sine, down * cosine - across * sine  # pixels in the thing's own frame
    inside = _SHAPES[thing.shape](u / thing.radius, v / thing.radius)
    if thing.texture == 0:
        marked = np.zeros((bottom - top, right - left), dtype=np.int16)
    else:
        marked = _fourfold(_TEXTURES[thing.texture - 1](u, v, thing) & inside)
    return slice(top, bottom), slice(left, right), _fourfold(inside), marked


def _fourfold(mask: np.ndarray) -> np.ndarray:
    """Count the true subpixels of each pixel: bool [2h, 2w] -> int16 [h, w]."""
    count = mask.view(np.uint8)
    rows = count[0::2] + count[1::2]
    return (rows[:, 0::2] + rows[:, 1::2]).astype(np.int16)


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u * u + v * v <= 1.0


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.abs(u) <= 0.86) & (np.abs(v) <= 0.86)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (np.abs(u) * 1.7 <= v + 0.98) & (v <= 0.72)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    p, q = np.abs(u), np.abs(v)
    return ((p <= 0.36) & (q <= 1.0)) | ((q <= 0.36) & (p <= 1.0))


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Five lines bound a pentagram: its points lie on the inner side of at least four of them."""
    count = sum((u * a + v * b <= 0.39).view(np.uint8) for a, b in _TIPS)
    return (count >= 4) & (u * u + v * v <= 1.12)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    squared = u * u + v * v
    return (squared <= 1.0) & (squared >= 0.25)


def _moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    cut = u - 0.66
    return (u * u + v * v <= 1.0) & (cut * cut + v * v >= 0.62)


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    x, y = u * 1.16, 0.12 - v * 1.16
    x, height = x * x, y * y
    body = x + height - 1.0
    return body * body * body <= x * (height * y)


_SHAPES = (_circle, _square, _triangle, _cross, _star, _ring, _moon, _heart)


def _striped(u: np.ndarray, v: np.ndarray, thing: Thing) -> np.ndarray:
    along = (u if thing.phase & 1 else v) / STRIPES[thing.size] + thing.phase / 256
    return along - np.floor(along) < 0.5


def _dotted(u: np.ndarray, v: np.ndarray, thing: Thing) -> np.ndarray:
    cell = DOTS[thing.size]
    p, q = u / cell + thing.phase / 256, v / cell + (thing.phase & 15) / 16
    p, q = p - np.floor(p) - 0.5, q - np.floor(q) - 0.5
    return p * p + q * q < 0.095


def _checked(u: np.ndarray, v: np.ndarray, thing: Thing) -> np.ndarray:
    cell = CHECKS[thing.size]
    p, q = np.floor(u / cell + thing.phase / 256), np.floor(v / cell + (thing.phase & 15) / 16)
    return ((p + q).astype(np.int16) & 1).astype(bool)


_TEXTURES = (_striped, _dotted, _checked)


def _background(scene: Scene) -> np.ndarray:
    """int16 [3, 64, 64]: the tint, the kind's pattern at a random offset, coarse noise and clutter."""
    draws = Draws(scene.key, "background")
    top, left = SIDE - draws.integer(0, SIDE - 1), SIDE - draws.integer(0, SIDE - 1)
    if scene.background == 1:  # the sky pales towards the horizon, so it keeps its height
        top = 0
    pattern = _pattern(scene.background)[top : top + SIDE, left : left + SIDE]
    # noise in blocks of 2x2 survives a resize and packs into half the bytes of a finer one
    coarse = (draws.noise(SIDE // 2, SIDE // 2) >> 4).astype(np.int16) - 8
    light = pattern + coarse.repeat(2, 0).repeat(2, 1)
    canvas = light + np.array(scene.tint, dtype=np.int16)[:, None, None]
    for _ in range(scene.clutter):
        shade = draws.choice((-34, -26, 26, 34))
        high, wide = draws.choice(((2, 2), (3, 3), (1, 5), (5, 1), (2, 4), (4, 2)))
        row, column = draws.integer(0, SIDE - high), draws.integer(0, SIDE - wide)
        canvas[:, row : row + high, column : column + wide] += np.int16(shade)
    return canvas


@functools.cache
def _pattern(kind: int) -> np.ndarray:
    """The light and shade of a kind of background, laid out twice each way: int16 [128, 128]."""
    return np.tile(_light(kind), (2, 2))


def _light(kind: int) -> np.ndarray:
    """One square of a kind's light and shade: int16 [64, 64], around zero."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE].astype(np.int16)
    draws = Draws(0, "pattern", kind)
    if kind == 0:  # wall: a faint slope across broad boards
        return (columns % 32 == 0) * np.int16(-14) + (columns % 32) // 4 - 4
    if kind == 1:  # sky: pale towards the horizon, with banks of cloud
        clouds = (draws.noise(SIDE // 4, SIDE // 8) > 204).astype(np.int16).repeat(4, 0).repeat(8, 1) * 20
        return (rows - 32) // 2 + clouds
    if kind == 2:  # grass: upright blades
        return ((draws.noise(SIDE // 8, SIDE) >> 3).astype(np.int16) - 16).repeat(8, 0)
    if kind == 3:  # sand: ripples
        ripple = np.array((0, 4, 8, 11, 12, 11, 8, 4, 0, -4, -8, -11, -12, -11, -8, -4), dtype=np.int16)
        return ripple[(rows + columns // 4) % 16]
    if kind == 4:  # tiles: dark joints around squares of two shades
        joint = (rows % 16 == 0) | (columns % 16 == 0)
        return np.where(joint, np.int16(-30), ((rows // 16 + columns // 16) % 2 * 12 - 6).astype(np.int16))
    stars = draws.noise(SIDE // 2, SIDE // 2) > 247  # night: points of light
    return stars.astype(np.int16).repeat(2, 0).repeat(2, 1) * 50
