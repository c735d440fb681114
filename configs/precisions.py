"""The values of `--precision`, for command lines (without heavy imports) and for Fabric."""

from __future__ import annotations

from collections.abc import Sequence

from console.errors import InputError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
"""Lightning's names: a number type, and `true` if weights also have it, or `mixed` if weights stay in 32 bits."""


def known_precision(precision: str, among: Sequence[str] = PRECISIONS) -> str:
    """The precision; InputError unless it is one of `among`. Short names such as 16 are ambiguous and not accepted."""
    if precision in among:
        return precision
    known = f"choose one of {', '.join(among)}"
    if precision in ("16", "bf16"):
        raise InputError(
            f"precision '{precision}' is ambiguous, since it does not say whether weights are stored in it: {known}"
        )
    if precision in PRECISIONS:
        raise InputError(f"precision {precision} is not supported by this command: {known}")
    raise InputError(f"unknown precision '{precision}': {known}")
