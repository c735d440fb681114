"""A log of JSON lines: each line whole, the file readable at any time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from console.errors import explain_os_error


def append_json_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON object as a line."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise explain_os_error(error, f"write {path}") from error
