"""The table of downloads (data/downloads.yaml), and the record of what was fetched.

The record is `downloads.json` in the first folder of where things go: `weights/downloads.json`, `data/downloads.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from configs.schema import parse, read_yaml
from console.errors import InputError, explain_os_error, nearest
from storage.atomic import write_json

TABLE = Path(__file__).with_name("downloads.yaml")


@dataclass(frozen=True)
class Download:
    """One download. Exactly one of url, drive and by_hand is given."""

    what: str  # its description
    folder: str  # where its files go, relative to the working directory
    files: list[str]  # below `folder`: the one file fetched, or those that the archive should contain
    url: str | None = None
    drive: str | None = None  # id of a file on Google Drive
    by_hand: str | None = None  # why it cannot be downloaded automatically
    page: str | None = None  # web page for people (default: the address)
    archive: str | None = None  # name of the packed file, by whose extension it is a zip or tar
    inside: str | None = None  # folder in the archive that becomes `folder` (default: the folder of that name)
    select: bool = False  # unpack nothing but `files`
    unpacks: float = 1.0  # bytes unpacked per byte fetched, an estimate for the check of free space
    optional: bool = False  # fetched only when it is named itself
    size: int | None = None  # bytes of what is fetched, where known
    sha256: str | None = None  # of what is fetched, where known

    def __post_init__(self) -> None:
        if [self.url, self.drive, self.by_hand].count(None) != 2:
            raise InputError(f"'{self.what}' needs exactly one of url, drive and by_hand")
        if self.url and not self.url.startswith(("https://", "http://")):
            raise InputError(f"'{self.url}' is not an address that begins with https:// or http://")
        for path in map(PurePosixPath, (self.folder, *self.files, *([self.archive] if self.archive else []))):
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise InputError(f"'{path}' must be a path below the working directory")
        if not self.by_hand and not self.archive and len(self.files) != 1:
            raise InputError(f"'{self.what}' is not an archive, so `files` must be the one file that is fetched")

    @property
    def address(self) -> str | None:
        """The address of its bytes; gdown resolves Drive's page."""
        return f"https://drive.google.com/file/d/{self.drive}/view" if self.drive else self.url

    @property
    def seen_at(self) -> str:
        """The page to open in a browser."""
        return self.page or self.address or ""

    @property
    def top(self) -> str:
        """The first folder of where it goes."""
        return PurePosixPath(self.folder).parts[0]

    def store(self, root: Path) -> Path:
        """Where the packed file lies until it is unpacked, and a single file until it is whole."""
        return root / self.top / "downloads" / (self.archive or PurePosixPath(self.files[0]).name)

    def insides(self) -> list[str]:
        """Where in the archive its files may lie: for data/finetune in data/finetune/ or in finetune/."""
        if self.inside is not None:
            return [self.inside]
        parts = PurePosixPath(self.folder).parts
        return ["/".join(parts[i:]) for i in range(len(parts))]


def read_table(path: Path = TABLE) -> dict[str, dict[str, Download]]:
    """Group -> name -> download. Raises InputError that names the entry."""
    table: dict[str, dict[str, Download]] = {}
    for group, entries in read_yaml(path).items():
        if not isinstance(entries, dict):
            raise InputError(f"{path}: '{group}' must be a mapping of names to downloads")
        table[group] = {name: parse(Download, entry or {}, f"{path}: {name}") for name, entry in entries.items()}
    return table


def choose(table: dict[str, dict[str, Download]], names: list[str], optional: bool = False) -> dict[str, Download]:
    """The downloads of groups (the optional ones only where asked) and of single names; InputError for an unknown."""
    singles = {name: download for group in table.values() for name, download in group.items()}
    chosen: dict[str, Download] = {}
    for name in names:
        if name in table:
            chosen |= {
                single: download for single, download in table[name].items() if optional or not download.optional
            }
        elif name in singles:
            chosen[name] = singles[name]
        else:
            known = [*table, *singles]
            raise InputError(f"there is no download '{name}'{nearest(name, known)}: choose from {', '.join(known)}")
    return chosen


def record_path(download: Download, root: Path) -> Path:
    """The file in which its fetching is recorded."""
    return root / download.top / "downloads.json"


def read_record(path: Path) -> dict[str, Any]:
    """Name -> {from, fetched, size, sha256, files: {path: {size, sha256}}}; empty where there is no record."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: delete it, and download its files again") from error
    well_formed = isinstance(record, dict) and all(
        isinstance(entry, dict) and {"from", "fetched", "size", "sha256", "files"} <= set(entry)
        for entry in record.values()
    )
    if not well_formed:
        raise InputError(f"{path} is not a record of downloads: delete it, and download its files again")
    return record


def add_to_record(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Record one download, in place of its earlier entry."""
    write_json(path, {**read_record(path), name: entry})
