"""A dataclass's fields as command line options: every field with a help text is an option, shown with its default."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from typing import Any


def option(default: Any, help: str, *flags: str, compare: bool = True) -> Any:
    """A dataclass field that a command line offers.

    flags: short names, such as `-e`. compare: whether it changes results, and so belongs to a run's identity.
    """
    return dataclasses.field(default=default, compare=compare, metadata={"help": help, "flags": flags})


def defining(options: Any) -> dict[str, Any]:
    """The values that change results, by name."""
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.compare}


def option_names(schema: type) -> set[str]:
    """All command line names of the schema's options."""
    offered = [field for field in dataclasses.fields(schema) if "help" in field.metadata]
    return {name for field in offered for name in (f"--{field.name}", *field.metadata["flags"])}


def add_options(parser: argparse._ActionsContainer, schema: type) -> None:
    """Add the schema's options; an option that is not given is None, so that the configuration applies."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if "help" not in field.metadata:
            continue
        kind = next(part for part in _parts(hints[field.name]) if part is not types.NoneType)
        shown = ("no", "yes")[field.default] if kind is bool else field.default
        more = "" if field.default is None else f" (default: {shown})"
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
        parser.add_argument(
            *field.metadata["flags"], f"--{field.name}", default=None, help=field.metadata["help"] + more, **how
        )


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types of `a | b`."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
