"""Read annotation files: JSON lists of records, which are validated before the work starts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from console.errors import InputError, explain_os_error

Record = dict[str, Any]

Checks = dict[str, Callable[[Any], bool]]
"""Field that a record must have -> whether its value can be used."""

Id = int | str
"""Of a question or an image: VQA's and COCO's are whole numbers, GQA's, NoCaps' and TextCaps' are texts."""


def read_json(path: Path | str) -> Any:
    """What a JSON file holds; InputError when it is missing or no JSON."""
    path = Path(path)
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise _unread(path, error) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        line = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        if path.suffix == ".jsonl":
            raise InputError(f"{path} has a record on each line: write them as one JSON list") from error
        raise InputError(f"{path} is not valid JSON{line}: fetch or write it again") from error


def _unread(path: Path, error: OSError) -> InputError:
    """Why annotations cannot be read; a missing file of a configuration of ours is fetched or written by a command."""
    ours = isinstance(error, FileNotFoundError) and "data" in path.parts
    return InputError(
        f"{explain_os_error(error, f'read the annotations {path}')}" + ", or get the data as docs/data.md says" * ours
    )


def read_json_records(path: Path | str) -> list[Record]:
    """As `read_json_list`, also of a file that has a record on every line (JSON lines)."""
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise _unread(path, error) from error
    if not next(filter(None, map(bytes.strip, lines)), b"").startswith(b"{"):
        return read_json_list(path)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records += [json.loads(line)] if line.strip() else []
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not valid JSON (line {number}): fetch or write it again") from error
    if not all(isinstance(record, dict) for record in records):
        raise InputError(f"{path} must have one record ({{...}}) on each line, but has not: check the file")
    return records


def read_json_list(path: Path | str) -> list[Record]:
    """The records of an annotation file; InputError when it is missing, no JSON, or no list of objects."""
    records = read_json(path)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(f"{path} must be one list of records ({{...}}), but it is not: check the file")
    if not records:
        raise InputError(f"{path} has no records: the data set is empty")
    return records


def check_fields(records: list[Record], path: Path | str, checks: Checks) -> None:
    """InputError naming the first record that lacks a field or holds the wrong kind of value."""
    for index, record in enumerate(records):
        check_record(record, f"{path}: record {index}", checks)


def check_record(record: Record, where: str, checks: Checks) -> None:
    """InputError for a field that is missing or holds the wrong kind of value. where: how the message calls it."""
    for field, is_valid in checks.items():
        if field not in record:
            raise InputError(f"{where} has no field '{field}'")
        if not is_valid(record[field]):
            raise InputError(f"{where} has an unusable '{field}': {str(record[field])[:80]!r}")


def refuse_repeats(values: Sequence[int | str], where: str) -> None:
    """InputError naming the first value that is there twice."""
    seen: set[int | str] = set()
    for value in values:
        if value in seen:
            raise InputError(f"{where}: {value!r} is there twice: remove one of them")
        seen.add(value)


def check_ids(ids: Sequence[Id], where: str) -> None:
    """InputError where an id is there twice, or some are numbers and others texts: 42 and '42' are two ids."""
    numbers, texts = ([i for i in ids if isinstance(i, kind)] for kind in (int, str))
    if numbers and texts:
        raise InputError(f"{where}: the id {numbers[0]} is a number and {texts[0]!r} a text: write all ids alike")
    refuse_repeats(ids, where)


def check_same_kind(ids: Iterable[Id], others: Iterable[Id], names: str, other_names: str) -> None:
    """InputError where one list has numbers as ids and the other texts, so that none can match."""
    one, other = next(iter(ids), None), next(iter(others), None)
    if one is not None and other is not None and isinstance(one, int) != isinstance(other, int):
        raise InputError(f"{names} have ids such as {one!r}, and {other_names} such as {other!r}: write them alike")


def is_text(value: Any) -> bool:
    """A string with something in it."""
    return isinstance(value, str) and bool(value.strip())


def is_caption(value: Any) -> bool:
    """A text, or a list of texts with at least one."""
    return is_text(value) or (isinstance(value, list) and bool(value) and all(map(is_text, value)))


def is_id(value: Any) -> bool:
    """A whole number, or a text with something in it."""
    return is_text(value) or (isinstance(value, int) and not isinstance(value, bool))


def is_answer(value: Any) -> bool:
    """A string, or a list of strings with at least one; people also leave answers empty."""
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
    )


def is_box(value: Any) -> bool:
    """[x, y, w, h], finite numbers."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(v, int | float) and math.isfinite(v) for v in value)
    )


def is_elements(value: Any) -> bool:
    """Regions: {"caption", "bb", "attributes"?} each."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(e, dict) and is_caption(e.get("caption")) and is_box(e.get("bb")) for e in value)
    )


def join_root(root: str, image: str) -> str:
    """`image` below `root`, unless it already starts with it."""
    if not root or image.startswith(root.rstrip("/") + "/"):
        return image
    return str(Path(root) / image)
