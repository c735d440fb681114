"""The intrinsic dimension of points, from the distances to their two nearest neighbours (TwoNN).

Facco, d'Errico, Rodriguez and Laio, "Estimating the intrinsic dimension of datasets by a minimal neighborhood
information", Scientific Reports 7, 2017. If the density is constant up to the second neighbour, mu = r2 / r1 has
P(mu <= x) = 1 - x^-d, so that -log(1 - P) against log mu is a line through the origin with slope d.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from console.errors import InputError
from console.words import counted

LEAST = 4
"""Least number of points in a block: the last two pairs are left out, and two remain for the fit."""


@dataclass(frozen=True)
class Dimension:
    """An estimate.

    dimension: mean over decompositions into 1, 2, ... blocks. whole: from all points together. deviation: standard
    deviation over the blocks of the last decomposition (population). used: number of points whose two neighbours have
    different distances above 0.
    """

    dimension: float
    whole: float
    deviation: float
    used: int


def dimension_of(
    squares: np.ndarray,
    blocks: int = 20,
    permutations: Sequence[Sequence[int]] | None = None,
    fraction: float = 1.0,
    seed: int = 0,
) -> Dimension:
    """The intrinsic dimension from squared Euclidean distances [n, n], float64.

    Points with a duplicate, or with two neighbours at the same distance, are left out.
    blocks: number in the last decomposition. permutations: for b = 1, 2, ... the order [n] that is cut into b blocks
    (default: drawn from `seed`). fraction: of the pairs, from the smallest mu on; the first TwoNN program used 0.9.
    InputError for too few points.
    """
    check_points(len(squares), blocks, fraction)
    squares = squares.copy()
    np.fill_diagonal(squares, np.inf)
    ratios = _ratios(squares)
    whole = _slope(ratios, fraction)
    means, last = [], np.array([whole])
    orders = _orders(len(squares), blocks, seed) if permutations is None else permutations
    for count, order in enumerate(orders, 1):
        order = np.asarray(order, dtype=np.int64)
        size = len(order) // count  # the remainder is left out, so that all blocks have equal size
        parts = (order[i * size : (i + 1) * size] for i in range(count))
        last = np.array([_slope(_ratios(squares[np.ix_(part, part)]), fraction) for part in parts])
        means.append(last.mean())
    return Dimension(float(np.mean(means)), float(whole), float(last.std()), len(ratios))


def check_points(count: int, blocks: int, fraction: float = 1.0) -> None:
    """InputError unless `count` points can be cut into the blocks."""
    if blocks < 1:
        raise InputError(f"blocks must be at least 1, not {blocks}")
    if not 0 < fraction <= 1:
        raise InputError(f"fraction is the share of the ratios used, above 0 and at most 1, not {fraction}")
    if count < LEAST * blocks:
        raise InputError(
            f"{counted(count, 'sample')} cannot be cut into {counted(blocks, 'block')} of {LEAST} or more: give at "
            f"least {LEAST * blocks} (--samples), or fewer blocks (--blocks)"
        )
    if fraction * (count // blocks) < 1:
        raise InputError(f"fraction {fraction:g} uses none of a block's {count // blocks} ratios: give a larger one")


def _orders(count: int, blocks: int, seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    for _ in range(blocks):
        yield random.permutation(count)


def _ratios(squares: np.ndarray) -> np.ndarray:
    """mu of each point, from squares [m, m] with an infinite diagonal; without duplicates and equal distances."""
    if len(squares) < LEAST:
        raise _too_few(len(squares))
    first, second = np.partition(squares, 1, axis=1)[:, :2].T
    usable = (first > 0) & (first != second)
    return np.sqrt(second[usable] / first[usable])


def _slope(ratios: np.ndarray, fraction: float) -> float:
    """Slope of the line through the origin, without the last two pairs, whose estimate of P is least accurate."""
    n = len(ratios)
    if n < LEAST:
        raise _too_few(n)
    pairs = max(1, min(n - 2, math.floor(fraction * n)))
    x = np.log(np.sort(ratios)[:pairs])
    y = -np.log1p(-np.arange(1, pairs + 1) / n)
    return float(x @ y / (x @ x))


def _too_few(count: int) -> InputError:
    return InputError(
        f"a block has {counted(count, 'point')} with two neighbours at different distances, fewer than {LEAST}: many "
        "samples are the same; give more (--samples), or fewer blocks (--blocks)"
    )
