"""Structured pruning of heads, neurons, channels and layers (models/parts.py): criteria, plans, export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.base import Model
    from shrinking.errors import Values

CRITERIA: Registry[Callable[[Model, int], Values]] = Registry(
    "criterion", {"magnitude": "shrinking.weights:magnitudes", "random": "shrinking.weights:random_values"}
)
"""Criterion -> function of a model and a seed: name of a set -> importance of each unit, [count]."""

MEASURED = ("mope", "taylor", "influence")
"""Criteria that use data, in `shrinking.measuring`."""
