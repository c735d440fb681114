"""Range checks of numbers in a configuration. NaN is outside of every range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from console.errors import InputError


def at_least(config: Any, least: float, *names: str) -> None:
    """InputError unless the fields `names` are None or not below `least`."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise InputError(f"{name} must be at least {least}, not {value}")


def probabilities(config: Any, *names: str) -> None:
    """InputError unless the fields `names` lie between 0 and 1."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise InputError(f"{name} is a probability, from 0 to 1, not {value}")


def shares_of_area(name: str, shares: Sequence[float]) -> None:
    """InputError unless these are the smallest and the largest share of an area."""
    if len(shares) != 2 or not 0 < shares[0] <= shares[1] <= 1:
        raise InputError(f"{name} is two rising shares of the area, above 0 and up to 1, not {shares}")
