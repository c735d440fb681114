"""`--set KEY=VALUE`: override single values of a configuration from the command line.

    python retrieval.py --model xvlm-mini --dense --set epochs=2 --set recipe.lr=1.0e-4
Keys are nested with dots, entries of a list counted from 0 (`stages.0.steps=100`); values are YAML. The result is
checked like the file itself (`configs.schema.parse`): unknown keys and wrong types are errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from configs.schema import read_yaml
from console.errors import InputError, nearest


def add_set(parser: Any) -> None:
    """Add the option `--set` to a parser or an option group."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value of the configuration, such as recipe.lr=1.0e-4; may be repeated",
    )


def read_settings(path: Path | str, assignments: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The YAML mapping in `path` with the assignments applied, and its name for messages."""
    where = str(path) + "".join(f" --set {assignment}" for assignment in assignments)
    return changed(read_yaml(path), assignments), where


def changed(settings: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of the settings with the assignments applied in order.

    In a file with the section `datasets`, a key is also set in every data set that overrides it.
    """
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if not sign or not all(key.split(".")):
            raise InputError(f"--set {assignment}: write KEY=VALUE, for example --set recipe.lr=1.0e-4")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
            raise InputError(f"--set {assignment}: the value is not valid YAML, quote it for the shell") from error
        keys = key.split(".")
        sets = settings.get("datasets")
        if isinstance(sets, dict) and keys[0] == "datasets" and len(keys) > 2 and keys[1] not in sets:
            raise InputError(f"--set {assignment}: there is no data set '{keys[1]}'{nearest(keys[1], sets)}")
        settings = _with(settings, keys, value, assignment)
        for name, own in sets.items() if isinstance(sets, dict) else ():
            if isinstance(own, dict) and keys[0] in own:
                settings = _with(settings, ["datasets", name, *keys], value, assignment)
    return settings


def joined_keys(value: Any, separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"stage": {"lr": 1}} -> {"stage.lr": 1}. Empty mappings stay, as values."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    return {
        name: leaf
        for key, part in value.items()
        for name, leaf in joined_keys(part, separator, f"{prefix}{separator}{key}" if prefix else str(key)).items()
    }


def _with(section: Any, keys: Sequence[str], value: Any, assignment: str) -> Any:
    """A copy of the section with the value set; not in place, since YAML aliases share sections."""
    if not keys:
        return value
    key, *below = keys
    if isinstance(section, list):
        if not key.isdecimal() or int(key) >= len(section):
            raise InputError(
                f"--set {assignment}: {key} is not one of {len(section)} entries, which are counted from 0"
            )
        number = int(key)
        return [*section[:number], _with(section[number], below, value, assignment), *section[number + 1 :]]
    if section is not None and not isinstance(section, dict):
        raise InputError(f"--set {assignment}: there is no key {key} in {section!r}, which is a single value")
    section = section or {}
    return {**section, key: _with(section.get(key), below, value, assignment)}
