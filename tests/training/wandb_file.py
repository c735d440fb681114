"""Read what an offline run of Weights & Biases left: a log of LevelDB's form whose records are protocol buffers.

The file starts with seven bytes of its own; then come blocks of 32 KiB with chunks of a header (checksum, length, kind:
1 whole, 2 first, 3 middle, 4 last part of a record) and data.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, OWN_HEADER, CHUNK_HEADER = 32768, 7, 7


@dataclass
class LoggedRun:
    """What one sitting logged: the run's name and id, its configuration, the rows in order, the summary."""

    name: str = ""
    id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def offline_runs(folder: Path) -> list[LoggedRun]:
    """The runs below `<folder>/wandb`, in the order in which they were started."""
    return [read_run(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def read_run(path: Path) -> LoggedRun:
    """A `.wandb` file; a killed process may have left its last record cut short."""
    from wandb.proto.wandb_internal_pb2 import Record

    run = LoggedRun()
    for data in records(path.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.name, run.id = record.run.display_name, record.run.run_id
            run.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            run.rows.append(row)
        elif kind == "summary":
            for item in record.summary.update:
                run.summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def records(content: bytes) -> Iterator[bytes]:
    """The whole records of a file's bytes."""
    at, parts = OWN_HEADER, b""
    while at + CHUNK_HEADER <= len(content):
        room = BLOCK - at % BLOCK
        if room < CHUNK_HEADER:  # too little for a header: the rest of the block is empty
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        start, at = at + CHUNK_HEADER, at + CHUNK_HEADER + length
        if kind == 0 or at > len(content):
            return
        parts = content[start:at] if kind in (1, 2) else parts + content[start:at]
        if kind in (1, 4):
            yield parts
