"""A log of JSON lines, which can be read at any time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from console.errors import explain_os_error
from storage.atomic import write_text


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object as a line, after a truncated one on a line of its own."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
            start = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(start + json.dumps(value).encode() + b"\n")
    except OSError as error:
        raise explain_os_error(error, f"write {path}") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; empty if there is no file. Lines that are not JSON, such as truncated ones, are left out."""
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
