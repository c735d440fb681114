"""What `--precision` takes, for every command line, which imports nothing heavy, and for Fabric."""

from __future__ import annotations

from collections.abc import Sequence

from console.errors import InputError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")
"""Type of the numbers; `true`: of the weights, too; `mixed`: the weights stay in 32 bits, and layers compute in it."""


def known_precision(precision: str, among: Sequence[str] = PRECISIONS) -> str:
    """The precision itself; InputError unless it is one of `among`. Short names are none: they are read in two ways."""
    if precision in among:
        return precision
    known = f"choose one of {', '.join(among)}"
    if precision in ("16", "bf16"):
        raise InputError(f"precision '{precision}' leaves open whether the weights are kept in it, too: {known}")
    if precision in PRECISIONS:
        raise InputError(f"precision {precision} is none that this command knows: {known}")
    raise InputError(f"unknown precision '{precision}': {known}")
