"""How the sparsity grows over the rounds of an iterative method."""

from __future__ import annotations

from console.errors import InputError, nearest

SCHEDULES = {
    "exp": lambda s, t, rounds: 1 - (1 - s) ** (t / rounds) if t < rounds else s,  # 1 - (1 - s) may round
    "linear": lambda s, t, rounds: s * t / rounds if t < rounds else s,
    "const": lambda s, t, rounds: s,
}
"""Sparsity after round t of `rounds`; all end at s."""


def check_rounds(epochs: int, schedule: str) -> None:
    """InputError for less than one round or an unknown schedule."""
    if epochs < 1:
        raise InputError(f"--epochs must be at least 1, not {epochs}")
    if schedule not in SCHEDULES:
        raise InputError(
            f"unknown schedule '{schedule}'{nearest(schedule, SCHEDULES)}: choose one of {', '.join(SCHEDULES)}"
        )
