"""Download public annotations and weights to the paths in the configurations, and check them later.

python -m data.download --list                     # available files, sources, targets, and what is present
python -m data.download annotations weights        # groups, or single names from the list
python -m data.download --check                    # sizes and SHA-256 against the record, without network

An interrupted download is resumed. An archive that was downloaded by hand is unpacked by running the command again.
Existing files are kept, unless --force is given.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path
from typing import Any

from console.command_line import Parser
from console.errors import InputError, explain_os_error, run_command
from console.words import counted
from data.downloads import TABLE, Download, add_to_record, choose, read_record, read_table, record_path
from storage.hashing import hash_file


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; nothing heavy is imported before it has been read."""
    parser = Parser(
        prog="python -m data.download",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="annotations, weights, masks, or names from --list")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list what is available, and fetch nothing")
    what.add_argument("--check", action="store_true", help="compare fetched files with their record, without network")
    parser.add_argument("--force", action="store_true", help="fetch again, and replace existing files")
    parser.add_argument("--keep", action="store_true", help="keep archives after unpacking")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(),
        help="folder that holds data/ and weights/ (default: the working directory)",
    )
    parser.add_argument("--table", type=Path, help="another table in the form of data/downloads.yaml, for mirrors")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Parse, then list, check or fetch."""
    args = parse_args(arguments)
    table = read_table(args.table or TABLE)
    only_reads = args.list or args.check
    if not args.names and not only_reads:
        raise InputError(f"nothing is named to fetch: choose {', '.join(table)}, or a name from --list")
    chosen = choose(table, args.names or list(table), optional=only_reads)
    if args.list:
        _list(table, chosen, args.root)
    elif args.check:
        _check(chosen, args.root, bool(args.names))
    else:
        _fetch_all(chosen, args)


def _fetch_all(chosen: dict[str, Download], args: argparse.Namespace) -> None:
    """One after the other; where one fails, the next is fetched all the same."""
    failed = {}
    for name, download in chosen.items():
        try:
            print(f"{name}: {_fetch(name, download, args.root, args.force, args.keep)}", flush=True)
        except InputError as error:
            failed[name] = error
            if len(chosen) > 1:
                print(f"error: {name}: {error}", file=sys.stderr)
    if failed and len(chosen) == 1:
        raise InputError(f"{name}: {failed[name]}")
    if failed:
        raise InputError(
            f"{counted(len(failed), 'download', 'is', of=len(chosen))} not here: {', '.join(failed)} (reasons above)"
        )


def _fetch(name: str, download: Download, root: Path, force: bool, keep: bool) -> str:
    """Fetch, unpack and record one download; returns the outcome in words."""
    from storage.lock import locked

    folder = root / download.folder
    if download.by_hand:
        if _missing(download, None, root):
            raise InputError(
                f"this cannot be downloaded automatically, since {download.by_hand}: open {download.seen_at} in a "
                f"browser, and save its files to {folder}"
            )
        return f"in {folder}, put there by hand"
    store = download.store(root)
    with locked(store.with_name(".lock"), f"download {name}", f"another process is downloading to {store.parent}"):
        record = record_path(download, root)
        known = read_record(record).get(name)
        if not force and not _missing(download, known, root):
            return f"already in {folder}" + ("" if known else ", put there by hand and not checked")
        if force and known and store.is_file() and hash_file(store) == known["sha256"]:
            store.unlink()  # an earlier run's archive; one put there by hand since is used
        size, sha256 = _bring(name, download, store, known, record)
        hashes, kept, words = _place(download, store, folder, sha256, force)
        files = {
            f"{download.folder}/{path}": {"size": (folder / path).stat().st_size, "sha256": digest}
            for path, digest in hashes.items()
        }
        day = datetime.datetime.now(datetime.UTC).date().isoformat()
        entry = {"from": download.address, "fetched": day, "size": size, "sha256": sha256, "files": files}
        entry |= {"kept": [f"{download.folder}/{path}" for path in kept]} if kept else {}
        add_to_record(record, name, entry)
        if not keep:
            store.unlink(missing_ok=True)
        return words


def _bring(name: str, download: Download, store: Path, known: dict[str, Any] | None, record: Path) -> tuple[int, str]:
    """Fetch to `store` unless it lies there; returns size in bytes and SHA-256, compared with what is known of it."""
    from storage.fetch import fetch, unfinished
    from storage.space import check_room

    def room(missing: int, size: int) -> None:
        unpacked = int(size * download.unpacks) if download.archive else 0
        check_room(store.parent, missing + unpacked, f"for {name}" + (" and to unpack it" if unpacked else ""))

    if not store.is_file():  # it may be: put there by hand, or left by a run that could not unpack it
        try:
            fetch(download.address, store, name, room)
        except InputError as error:
            parts = ", ".join(map(str, unfinished(store)))
            resumes = f"the same command resumes the download ({parts}; delete it to start again); " if parts else ""
            by_hand = f"by hand: save {download.seen_at} as {store} and run the command again"
            raise InputError(f"{error}; {resumes}{by_hand}") from error
    found = hash_file(store)
    expected = download.sha256 or (known["sha256"] if known and known["from"] == download.address else found)
    if found != expected:
        accept = "" if download.sha256 else f"; to accept it, remove '{name}' from {record} and run the command again"
        raise InputError(
            f"{store} has the SHA-256 {found}, but it should be {expected}: it was damaged, or its source has "
            f"changed; to download it again, delete it and run the command again{accept}"
        )
    return store.stat().st_size, found


def _place(
    download: Download, store: Path, folder: Path, sha256: str, force: bool
) -> tuple[dict[str, str], list[str], str]:
    """Unpack an archive, or move a single file to its place.

    Returns path below `folder` -> SHA-256 of the files that are as fetched; those left alone; words about it.
    """
    from storage.unpack import unpack

    if not download.archive:
        target = folder / download.files[0]
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            store.replace(target)
        except OSError as error:
            raise explain_os_error(error, f"write {target}") from error
        return {download.files[0]: sha256}, [], f"in {target}"
    only = download.files if download.select else None
    written, kept = unpack(store, folder, download.insides(), only, force)
    absent = [path for path in download.files if path not in written and path not in kept]
    words = f"{counted(len(written), 'file')} in {folder}"
    words += f"; left as before, of other content (--force replaces files): {', '.join(kept)}" if kept else ""
    words += f"; not in the archive: {', '.join(absent)}" if absent else ""
    return written, kept, words


def _missing(download: Download, known: dict[str, Any] | None, root: Path) -> list[str]:
    """Its files that are missing: of the recorded ones, else of those that the table names."""
    if download.by_hand and not download.files:
        folder = root / download.folder
        return [] if folder.is_dir() and any(folder.iterdir()) else [download.folder]
    paths = (
        [*known["files"], *known.get("kept", ())] if known else [f"{download.folder}/{path}" for path in download.files]
    )
    return [path for path in paths if not (root / path).is_file()]


def _list(table: dict[str, dict[str, Download]], chosen: dict[str, Download], root: Path) -> None:
    """The chosen downloads by group; addresses whole, so that they can be copied."""
    from storage.space import in_bytes

    for group, entries in table.items():
        shown = {name: download for name, download in entries.items() if name in chosen}
        for i, (name, download) in enumerate(shown.items()):
            if i == 0:
                print(group)
            known = read_record(record_path(download, root)).get(name)
            size = known["size"] if known else download.size
            missing = _missing(download, known, root)
            wanted = [*known["files"], *known.get("kept", ())] if known else download.files
            here = "not here" if missing else "here"
            if 0 < len(missing) < len(wanted):
                here = f"{counted(len(missing), 'file', 'is', of=len(wanted))} not here"
            how = ", only when named" if download.optional else ", by hand" if download.by_hand else ""
            print(f"  {name}: {here} ({in_bytes(size) if size else 'size not known'}{how})")
            print(f"    {download.what}\n    from {download.seen_at}\n    to   {download.folder}/")


def _check(chosen: dict[str, Download], root: Path, named: bool) -> None:
    """Compare files with the record; InputError when one is missing or has changed, or one that was named has none."""
    from console.progress import progress_bar

    wrong, checked = [], 0
    for name, download in chosen.items():
        known = read_record(record_path(download, root)).get(name)
        if known is None:
            if named:
                print(f"{name}: not fetched by this command, so there is nothing to compare with")
            continue
        found = []
        with progress_bar(f"checking {name}", len(known["files"])) as advance:
            for path, entry in known["files"].items():
                file = root / path
                if not file.is_file():
                    found.append(f"{path} is missing")
                elif file.stat().st_size != entry["size"] or hash_file(file) != entry["sha256"]:
                    found.append(f"{path} has changed since it was downloaded on {known['fetched']}")
                advance()
        checked += len(known["files"])
        print(f"{name}: {'; '.join(found) or counted(len(known['files']), 'file') + ' as fetched'}")
        wrong += found
    if wrong:
        raise InputError(f"{wrong[0]} ({counted(len(wrong), 'file', of=checked)} wrong): fetch it again with --force")
    if not checked:
        raise InputError(f"nothing in {root} was fetched by this command, so there is nothing to check")


if __name__ == "__main__":
    run_command(main)
