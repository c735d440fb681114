"""Unpack a tar or zip file that a stranger packed: plain files below one folder, each whole or not at all.

Every name and kind is looked at before anything is written: links, absolute names, `..`, devices and lack of room end
it there, and so does damage to a tar. Then all files go to a temporary folder, and from there to their places.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import lzma
import re
import shutil
import stat
import tarfile
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from gzip import BadGzipFile
from pathlib import Path, PurePosixPath
from typing import IO

from console.errors import InputError, explain_os_error
from console.progress import TransferBar, transfer_bar
from storage.hashing import hash_file
from storage.space import check_room

CHUNK = 1 << 20
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, BadGzipFile, EOFError, zlib.error, lzma.LZMAError, NotImplementedError)
ENCRYPTED = 1  # a bit of a zip member's flags


@dataclass(frozen=True)
class Member:
    """A plain file in an archive; size in bytes when unpacked."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


@dataclass
class Unpacked:
    """What came of it, paths relative to the folder: SHA-256 of the files now as in the archive; those left alone."""

    written: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)


def unpack(
    archive: Path,
    folder: Path,
    inside: list[str],
    only: list[str] | None = None,
    force: bool = False,
    title: str = "",
) -> Unpacked:
    """Unpack into `folder` what lies below a folder of the archive.

    inside: which folder; the first of these below which all its files lie ("" is all of it).
    only: the files wanted (relative); others are left in the archive. None: all.
    force: whether files of other content that are there already are replaced.
    Raises InputError, with nothing written, when the archive is damaged or holds anything it should not.
    """
    _remove_leftovers(folder)
    try:
        with _members(archive) as members:
            placed = _placed(archive, folder, members, inside, only)
            check_room(folder, sum(member.size for member in placed.values()), f"to unpack {archive.name}")
            beside = folder if folder.is_dir() else folder.parent
            temporary = beside / f".{folder.name}.{uuid.uuid4().hex[:8]}.part"
            try:
                with transfer_bar(title or f"unpacking {archive.name}") as bar:
                    bar.begin(0, sum(member.size for member in placed.values()))
                    hashes = {path: _write(member, temporary / path, bar) for path, member in placed.items()}
                return _move(temporary, folder, hashes, force)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{archive} is damaged or cut short ({reason[:120]}), nothing of it was unpacked: "
            "delete it and fetch it again"
        ) from error
    except OSError as error:
        raise explain_os_error(error, f"unpack {archive} into {folder}") from error


def _write(member: Member, path: Path, bar: TransferBar) -> str:
    """Write one file; returns its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with member.open() as source, path.open("xb") as file:
        while chunk := source.read(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            bar.advance(len(chunk))
    return digest.hexdigest()


def _move(temporary: Path, folder: Path, hashes: dict[str, str], force: bool) -> Unpacked:
    """Bring unpacked files to their places: the whole folder at once where it is new, else file by file."""
    if not folder.exists():
        temporary.replace(folder)
        return Unpacked(hashes)
    done = Unpacked()
    for path, sha256 in hashes.items():
        target = folder / path
        if target.exists() and not force and hash_file(target) != sha256:
            done.kept.append(path)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        (temporary / path).replace(target)
        done.written[path] = sha256
    return done


def _remove_leftovers(folder: Path) -> None:
    """Temporary folders of processes that were killed; nobody else may be unpacking there now."""
    for place in (folder, folder.parent):
        for left in place.glob(f".{glob.escape(folder.name)}.????????.part"):
            shutil.rmtree(left, ignore_errors=True)


def _placed(
    archive: Path, folder: Path, members: list[Member], inside: list[str], only: list[str] | None
) -> dict[str, Member]:
    """Path below `folder` -> member, every name looked at."""
    names = {member.name: _checked(archive, member.name) for member in members}
    if len(set(names.values())) < len(members):
        raise InputError(f"{archive} holds a file twice; nothing of it was unpacked")
    names = {name: path for name, path in names.items() if not _clutter(path)}
    for start in map(PurePosixPath, inside):
        placed = {str(path.relative_to(start)): name for name, path in names.items() if path.is_relative_to(start)}
        if placed and (only is not None or len(placed) == len(names)):
            break
    else:
        listed = ", ".join(list(names)[:5]) or "nothing"
        raise InputError(
            f"{archive} holds {listed}, not only files below {inside[0]}, as it should; nothing of it was unpacked: "
            f"look into it and put its files into {folder} by hand"
        )
    for path in only or []:
        if path not in placed:
            raise InputError(f"{archive} holds no {path}; nothing of it was unpacked")
    by_name = {member.name: member for member in members}
    return {path: by_name[name] for path, name in placed.items() if only is None or path in only}


def _checked(archive: Path, name: str) -> PurePosixPath:
    """A member's name as a path that stays inside the folder; InputError for any other."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or re.search(r"[\\\0]|^[A-Za-z]:", name):
        raise InputError(f"{archive} holds '{name}', a path that may lead elsewhere; nothing of it was unpacked")
    return path


def _clutter(path: PurePosixPath) -> bool:
    """What the packers of some systems add."""
    return path.name.startswith("._") or path.name == ".DS_Store" or "__MACOSX" in path.parts


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[list[Member]]:
    """The plain files of an archive, in its order; InputError for links and the like."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as packed:
            yield [_zip_member(archive, packed, info) for info in packed.infolist() if not info.is_dir()]
        return
    with tarfile.open(archive) as packed:
        infos = [info for info in packed.getmembers() if not info.isdir()]
        for info in infos:
            if not info.isreg():
                raise _strange(archive, info.name)
        while packed.fileobj.read(CHUNK):  # up to the checksum at the end
            pass
        yield [Member(i.name, i.size, lambda i=i: packed.extractfile(i)) for i in infos]


def _zip_member(archive: Path, packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG) or info.flag_bits & ENCRYPTED:
        raise _strange(archive, info.filename)
    return Member(info.filename, info.file_size, lambda: packed.open(info))


def _strange(archive: Path, name: str) -> InputError:
    return InputError(
        f"{archive} holds '{name}', which is a link, a device or encrypted, not a plain file; "
        "nothing of it was unpacked"
    )
