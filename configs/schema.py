"""Parse a YAML file or a dict into a dataclass; errors are one sentence.

A configuration is a (nested) dataclass: its fields are the allowed keys, its annotations the types.
Unknown keys are errors that name the nearest valid key. YAML 1.1 reads `1e-5` as a string: that is
an error that says how to write it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from console.errors import InputError, explain_os_error, nearest

CONFIGS = Path(__file__).parent

T = TypeVar("T")


def model_names() -> list[str]:
    """Names of the shipped models: the folders of `configs/` with a `model.yaml`."""
    return sorted(path.parent.name for path in CONFIGS.glob("*/model.yaml"))


def models_with(task: str) -> list[str]:
    """Names of the shipped models that have a configuration for a task; `timm:NAME` for any model of a library."""
    found = sorted(path.parent.name for path in CONFIGS.glob(f"*/{task}.yaml"))
    own = model_names()
    return [name for name in found if name in own] + [f"{name}:NAME" for name in found if name not in own]


SMALL = "small"
"""Prefix of the name of a smaller model: the rest is its folder (models/small.py)."""


def base_name(model: str) -> str:
    """The model that `small:FOLDER` was cut from, by its plan; the name itself for all others."""
    prefix, _, folder = model.partition(":")
    if prefix != SMALL:
        return model
    path = Path(folder) / "plan.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["name"])
    except OSError as error:
        raise explain_os_error(error, f"read the plan of {model}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: it does not name the model that was cut; cut it again") from error


def library_of(model: str) -> str | None:
    """`timm` for `timm:resnet18`, the folder of configurations of a library's models; None for the toolkit's models.

    A smaller model uses that of its base.
    """
    base = base_name(model)
    if base != model:
        return library_of(base) or base
    prefix, colon, _ = model.partition(":")
    return prefix if colon and (CONFIGS / prefix).is_dir() else None


def task_file(model: str, task: str) -> Path:
    """The shipped configuration `configs/<model>/<task>.yaml`; InputError when there is none.

    All models of a library (timm:<name>, hf:<name>) share one folder.
    """
    model = library_of(model) or model
    if model not in {path.name for path in CONFIGS.iterdir() if path.is_dir()}:  # a name, not a path
        raise InputError(
            f"unknown model '{model}'{nearest(model, model_names())}: choose one of {', '.join(model_names())}"
        )
    path = CONFIGS / model / f"{task}.yaml"
    if not path.is_file():
        tasks = sorted(p.stem for p in path.parent.glob("*.yaml"))
        others = f"; models that have one: {', '.join(found)}" if (found := models_with(task)) else ""
        raise InputError(f"model '{model}' has no configuration for '{task}' (it has: {', '.join(tasks)}){others}")
    return path


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read a YAML mapping; InputError if the file is missing, invalid, or not a mapping."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text)
    except OSError as error:
        raise explain_os_error(error, f"read the configuration {path}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or an impossible date
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise InputError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', error)}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a mapping of keys to values, not a {type(value).__name__}")
    _check_twice(yaml.compose(text, Loader=yaml.SafeLoader), path)
    return value


def _check_twice(root: yaml.Node, path: Path) -> None:
    """InputError for a key that occurs twice in a mapping: YAML would silently use the last."""
    left, known = [root], set()
    while left:
        node = left.pop()
        if id(node) in known:  # an alias
            continue
        known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        elif isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if key.value in keys:
                    line = key.start_mark.line + 1
                    raise InputError(f"{path} has the key '{key.value}' twice, again at line {line}: leave one out")
                keys.add(key.value)
                left.append(value)


def parse(schema: type[T], mapping: dict[str, Any], where: str, inner: bool = False) -> T:
    """Build the dataclass `schema` from `mapping`.

    where: names the source in error messages, for example a file name. inner: put `where` before errors of the
    dataclass's own checks. At the top level a rejected value may come from the command line instead of the file.
    Raises InputError for an unknown key, a missing key or a value of the wrong type.
    """
    if hasattr(schema, "chosen"):  # the section's dataclass depends on one of its keys
        schema = schema.chosen(mapping, where)
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}  # type: ignore[arg-type]
    needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if not needed <= set(mapping) <= set(fields):
        file, _, assignments = where.partition(" --set ")
        whole = Path(file).is_file() and ": " not in assignments  # not a section of a file
        other = other_task(mapping, needed, set(fields)) if whole else None
        if other is not None:
            raise InputError(
                f"{where} looks like a configuration of another task, {other}: give one of this task, or leave it out "
                "if there is a default"
            )
    for key in mapping:
        if key not in fields:
            raise InputError(f"{where}: unknown key '{key}'{nearest(str(key), fields)}")
    values = {}
    for name in fields:
        if name in mapping:
            values[name] = _convert(hints[name], mapping[name], where, name)
        elif name in needed:
            raise InputError(f"{where}: the key '{name}' is missing")
    try:
        return schema(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") if inner else error from None


def other_task(mapping: dict[str, Any], needed: set[str], fields: set[str]) -> str | None:
    """The task whose shipped configurations are most similar to `mapping`; None if `fields` match better.

    Similarity decreases with the number of keys that only one of them has. needed: fields without a default.
    """
    keys, nearest_of, own = set(mapping), {}, []
    for path in sorted(CONFIGS.glob("*/*.yaml")):
        if path.stem == "model" or path.parent.name == "experiments":
            continue
        shipped = set(read_yaml(path))
        apart = len(keys ^ shipped)
        if needed <= shipped <= fields:
            own.append(apart)
        elif 2 * len(keys & shipped) > len(shipped):
            nearest_of[path.stem] = min(apart, nearest_of.get(path.stem, apart))
    best = min(nearest_of, key=nearest_of.__getitem__, default=None)
    return best if best is not None and nearest_of[best] < min(own, default=len(keys)) else None


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    """Check `value` against the annotation `hint`; returns it, parsed into a dataclass if the annotation is one."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        for option in options[:-1]:
            try:
                return _convert(option, value, where, key)
            except InputError:
                continue
        return _convert(options[-1], value, where, key)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _wrong_type(value, "a mapping", where, key)
        return parse(typing.cast(type, hint), value, f"{where}: {key}", inner=True)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong_type(value, "a list", where, key)
        return [_convert(typing.get_args(hint)[0], item, where, f"{key}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong_type(value, "a mapping", where, key)
        item_hint = typing.get_args(hint)[1]
        return {str(k): _convert(item_hint, item, where, f"{key}.{k}") for k, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any:
        return value
    if type(value) is not hint:
        names = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
        raise _wrong_type(value, names[hint], where, key)
    return value


def _wrong_type(value: Any, wanted: str, where: str, key: str) -> InputError:
    message = f"{where}: '{key}' must be {wanted}, not {value!r}"
    if isinstance(value, str) and "number" in wanted:
        with contextlib.suppress(ValueError, OverflowError):  # no number, or an infinite one
            number = int(float(value))
            whole = "whole" in wanted and number == float(value)
            message += f" (YAML reads this as text: write {number if whole else _with_dot(value)})"
    return InputError(message)


def _with_dot(number: str) -> str:
    """'1e-5' -> '1.0e-5', the spelling that YAML 1.1 reads as a number."""
    mantissa, _, exponent = number.lower().partition("e")
    if exponent and exponent[0] not in "+-":
        exponent = f"+{exponent}"
    return (mantissa if "." in mantissa else f"{mantissa}.0") + (f"e{exponent}" if exponent else "")
