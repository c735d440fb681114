"""A log of JSON lines, which can be read at any time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from console.errors import explain_os_error
from storage.atomic import write_text


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object as a line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise explain_os_error(error, f"write {path}") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, without a truncated last one; empty if there is no file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def keep_json_lines(path: Path, keep: Callable[[dict[str, Any]], bool], source: Path | None = None) -> None:
    """Keep only the lines that satisfy `keep`: a resumed run logs again the steps after its last snapshot.

    source: the log to read (None: the same). A truncated last line is dropped. Nothing is written when neither has a
    line.
    """
    lines = [json.dumps(line) + "\n" for line in read_json_lines(source or path) if keep(line)]
    if lines or path.is_file():
        write_text(path, "".join(lines))
