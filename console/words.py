"""Numbers with nouns in messages, singular or plural."""

from __future__ import annotations

VERBS = {"is": "are", "was": "were", "has": "have", "does": "do"}


def counted(number: int, noun: str, verb: str = "", of: int | None = None) -> str:
    """`1 mask`, `3,000 masks`; with a verb, `1 mask is`, `3 masks are`; of several, `1 of 3 masks is`."""
    words = [f"{number:,}"] if of is None else [f"{number:,} of {of:,}"]
    words.append(noun if (number if of is None else of) == 1 else _plural(noun))
    return " ".join([*words, agreed(number, verb)] if verb else words)


def agreed(number: int, verb: str) -> str:
    """The verb in the singular or plural, given in the singular: is, has, saves -> are, have, save."""
    return verb if number == 1 else VERBS.get(verb, verb.removesuffix("s"))


def place_of(number: int) -> str:
    """For messages on replacements: `its place`, `the place of each`."""
    return "its place" if number == 1 else "the place of each"


def _plural(noun: str) -> str:
    if noun.endswith(("s", "x", "sh", "tch")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


def pct(share: float, digits: int = 1) -> str:
    """0.7531 -> 75.3 %."""
    return f"{100 * share:.{digits}f} %"


def share_of_matrices(prunable: int, whole: int) -> str:
    """What 100 % of a mask refers to: the prunable weights, as a share of all matrix weights."""
    return f"{prunable:,} prunable weights, {100 * prunable / whole:.1f} % of those in the model's matrices"
