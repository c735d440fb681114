"""Fingerprints: what a result was made of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from console.errors import explain_os_error


def hash_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` prints it."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error


def hash_json(value: Any) -> str:
    """SHA-256 of a JSON-like value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
