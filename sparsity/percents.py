"""Sparsities on the command line: percents of the prunable weights."""

from __future__ import annotations

from typing import Any

from console.errors import InputError


def percent(sparsity: float) -> str:
    """0.75 -> '75', 0.625 -> '62.5'."""
    return f"{sparsity * 100:.10g}"


def parse_percents(values: list[Any]) -> list[float]:
    """Sparsities in percent, from text such as '63' or '62.5' (commas allowed); InputError for anything else."""
    percents: list[float] = []
    for text in (part for value in values for part in str(value).split(",") if part):
        try:
            value = float(text.rstrip("%"))
        except ValueError:
            raise InputError(f"sparsity '{text}' is not a number: give percents such as -s 63 75 90") from None
        if 0 < value < 1:
            raise InputError(f"sparsity {text} is below 1 %: give percents, for example {value * 100:g} for {text}")
        if not 0 < value < 100:
            raise InputError(f"sparsity {text} is not between 0 and 100 percent (both excluded)")
        if value in percents:
            raise InputError(f"sparsity {text} is given twice")
        percents.append(value)
    if not percents:
        raise InputError("no sparsity given: ask for at least one, for example -s 75")
    return percents
