"""Counted things in messages: one of them, or several."""

from __future__ import annotations

PLURAL_VERBS = {"is": "are", "was": "were", "has": "have", "does": "do"}


def counted(number: int, noun: str, verb: str = "") -> str:
    """`1 mask`, `3 masks`; with a verb, `1 mask is`, `3 masks are`. Only the last letter of the noun changes: -s.

    Verbs that are not in PLURAL_VERBS are given as of one thing (`belongs`) and lose their -s.
    """
    if number == 1:
        return f"1 {noun}" + (f" {verb}" if verb else "")
    several = PLURAL_VERBS.get(verb, verb.removesuffix("s"))
    return f"{number} {noun}s" + (f" {several}" if several else "")
