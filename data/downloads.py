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
    """One thing to fetch. Exactly one of url, drive and by_hand says how.

    what: in words. folder: where its files go, relative to the working directory. files: relative to `folder`; of an
    archive, those that should be in it; without an archive, the one file that is fetched.
    drive: the id of a file on Google Drive. by_hand: why it cannot be fetched. page: where people find it.
    archive: what the packed file is called; its extension decides between zip and tar. inside: the folder in the
    archive whose content goes to `folder` (by default the folder of that name). select: unpack nothing but `files`.
    unpacks: how many bytes come of one, a guess for the room that is asked for before the fetch. optional: fetched only
    when named itself. size in bytes and sha256 of what is fetched, where known beforehand.
    """

    what: str
    folder: str
    files: list[str]
    url: str | None = None
    drive: str | None = None
    by_hand: str | None = None
    page: str | None = None
    archive: str | None = None
    inside: str | None = None
    select: bool = False
    unpacks: float = 1.0
    optional: bool = False
    size: int | None = None
    sha256: str | None = None

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
        """Where its bytes are; gdown knows how to get them out of Drive's page."""
        return f"https://drive.google.com/file/d/{self.drive}/view" if self.drive else self.url

    @property
    def seen_at(self) -> str:
        """Where a person finds it."""
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
    """Record one download, in place of what was recorded of it."""
    write_json(path, {**read_record(path), name: entry})
