"""The look of each pruner in pictures and tables: a hue per family of methods, markers and dashes for its members.

The colours suit the colour-blind, and a light and a dark page; no picture distinguishes pruners by colour alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inspection.page import COLOURS
from pruners import PRUNERS
from sparsity.progressive_config import CHOICES

HUES = {
    "blue": ("#0c62cb", "#529aff"),
    "orange": ("#e84401", "#de6b30"),
    "gold": ("#a08d24", "#eacd31"),
    "brown": ("#562c08", "#a3765d"),
    "grey": ("#7b858d", "#9ca4aa"),
    "sky": ("#1d97cf", "#8ff2ff"),
    "purple": ("#76196d", "#b570bc"),
    "green": ("#0a9658", "#53eca4"),
    "red": ("#bd0f32", "#c32273"),
}
"""Name -> colour on a light page and on a dark one. Families take them in turn, in the order of the registry."""

LIGHT = {name: shades[0] for name, shades in HUES.items()}
LIGHT |= {name: COLOURS[name][0] for name in ("ink", "soft", "line", "page")}
"""Name -> colour in which pictures are drawn."""

SHAPES = (("o", "solid"), ("s", (0, (4, 2))), ("^", (0, (1.2, 1.6))), ("D", (0, (5, 1.5, 1, 1.5))), ("v", (0, (8, 2))))
"""Marker and dashes of the members of a hue; from the sixth on, markers are combined with other dashes."""


@dataclass(frozen=True)
class Look:
    """hue: key of HUES. number: among those of its hue, from 0."""

    hue: str
    number: int

    @property
    def colour(self) -> str:
        """The drawn colour, which the page replaces by the CSS variable of its hue."""
        return LIGHT[self.hue]

    @property
    def marker(self) -> str:
        """For matplotlib."""
        return SHAPES[self.number % len(SHAPES)][0]

    @property
    def dashing(self) -> int:
        """Index into SHAPES of its dashes."""
        return (self.number + self.number // len(SHAPES)) % len(SHAPES)

    @property
    def dashes(self) -> object:
        """For matplotlib."""
        return SHAPES[self.dashing][1]


def looks(pruners: Sequence[str], methods: Mapping[str, str]) -> dict[str, Look]:
    """Pruner -> its look. methods: variant -> its method, whose hue it gets.

    A method of the toolkit looks the same in every report, whatever the other rows.
    """
    of_all, hues = list(HUES), {}
    members: Counter[str] = Counter()
    found: dict[str, Look] = {}

    def add(name: str, hue: str) -> None:
        found[name] = Look(hue, members[hue])
        members[hue] += 1

    families = {name: PRUNERS[name].family or name for name in PRUNERS} | dict.fromkeys(CHOICES, "while training")
    for name, family in families.items():
        add(name, hues.setdefault(family, of_all[len(hues) % len(of_all)]))
    for position, name in enumerate(name for name in pruners if name not in families):
        method = found.get(methods.get(name, name))
        add(name, method.hue if method else of_all[position % len(of_all)])
    return {name: found[name] for name in pruners}
