"""One colour a pruner, in all pictures and tables: a hue for a family of methods, marker and dashes for its members.

Colours are told apart by people who see no red or no green, and stand out on a light page and on a dark one; no picture
tells pruners apart by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LIGHT = {
    "blue": "#0c62cb",
    "orange": "#e84401",
    "green": "#0a9658",
    "purple": "#76196d",
    "sky": "#1d97cf",
    "gold": "#a08d24",
    "brown": "#562c08",
    "grey": "#7b858d",
    "ink": "#1d2125",
    "soft": "#5d6770",
    "line": "#dde1e4",
    "page": "#fafaf8",
}
DARK = {
    "blue": "#529aff",
    "orange": "#de6b30",
    "green": "#53eca4",
    "purple": "#b570bc",
    "sky": "#8ff2ff",
    "gold": "#eacd31",
    "brown": "#a3765d",
    "grey": "#9ca4aa",
    "ink": "#e5e8ea",
    "soft": "#9aa5ae",
    "line": "#2d343a",
    "page": "#14171a",
}
"""The last four are the page's own (inspection/page.py)."""

OWN = ("ink", "soft", "line", "page")

FAMILIES = {
    "multiflow": "blue",
    "snip": "orange",
    "itersnip": "orange",
    "chita": "green",
    "chita++": "green",
    "tamt": "purple",
    "wanda": "sky",
    "sparsegpt": "sky",
    "omp": "gold",
    "localmp": "gold",
    "l2": "brown",
    "lamp": "brown",
    "rand": "grey",
}
"""Method -> hue; methods that are not here take the hues in turn."""

SHAPES = (("o", "solid"), ("s", (0, (4, 2))), ("^", (0, (1.2, 1.6))), ("D", (0, (5, 1.5, 1, 1.5))), ("v", (0, (8, 2))))
"""Marker and dashes of the first, second, ... of a hue; from the sixth on, the dashes of another marker."""


@dataclass(frozen=True)
class Look:
    """hue: key of LIGHT and DARK. number: which of its hue it is."""

    hue: str
    number: int

    @property
    def colour(self) -> str:
        """As it is drawn; the page replaces it by its variable."""
        return LIGHT[self.hue]

    @property
    def marker(self) -> str:
        """Of matplotlib."""
        return SHAPES[self.number % len(SHAPES)][0]

    @property
    def dashing(self) -> int:
        """Whose dashes it has, of SHAPES."""
        return (self.number + self.number // len(SHAPES)) % len(SHAPES)

    @property
    def dashes(self) -> object:
        """Of matplotlib."""
        return SHAPES[self.dashing][1]


def looks(pruners: Sequence[str], methods: Mapping[str, str]) -> dict[str, Look]:
    """Pruner -> how it looks.

    methods: pruner -> method, for variants, which take the hue of theirs. A method of the toolkit looks the same in
    every report, whichever others are there.
    """
    found = {}
    members: dict[str, int] = {}
    for name, hue in FAMILIES.items():
        number = members.get(hue, 0)
        members[hue] = number + 1
        if name in pruners:
            found[name] = Look(hue, number)
    hues = [hue for hue in LIGHT if hue not in OWN]
    others = [name for name in pruners if name not in found]
    for position, name in enumerate(others):
        hue = FAMILIES.get(methods.get(name, name)) or hues[position % len(hues)]
        number = members.get(hue, 0)
        members[hue] = number + 1
        found[name] = Look(hue, number)
    return {name: found[name] for name in pruners}


def style() -> str:
    """The hues as variables of a page."""

    def variables(colours: Mapping[str, str]) -> str:
        return " ".join(f"--{name}: {colour};" for name, colour in colours.items() if name not in OWN)

    return f":root {{ {variables(LIGHT)} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}\n"
