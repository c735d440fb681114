"""Unpack an untrusted tar or zip file: plain files below one folder, each written atomically.

Every name and kind is checked before anything is written: links, absolute names, `..`, devices, lack of space and a
damaged tar are errors. Files are first unpacked to a temporary folder, then moved to their places.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from console.errors import InputError, explain_os_error
from console.progress import progress_bar
from storage.hashing import hash_file
from storage.space import check_room

CHUNK = 1 << 20
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,  # an encrypted zip file, or a method that Python does not know
)


def unpack(
    archive: Path, folder: Path, inside: list[str], only: list[str] | None = None, force: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Unpack the content of a folder of the archive into `folder`.

    Returns path below `folder` -> SHA-256 of the files that now equal the archive's; and the paths that were kept.

    inside: which folder; the first of these below which all its files lie ("" is all of it).
    only: the files wanted (relative); others are left in the archive. None: all.
    force: whether existing files of other content are replaced.
    Raises InputError, with nothing written, when the archive is damaged or holds anything it should not.
    """
    temporary = (folder if folder.is_dir() else folder.parent) / f".{folder.name}.part"
    try:
        with zipfile.ZipFile(archive) if archive.suffix == ".zip" else tarfile.open(archive) as packed:
            sizes = _sizes(archive, packed)
            names = _placed(archive, folder, list(sizes), inside, only)
            check_room(folder, sum(sizes[name] for name in names.values()), f"to unpack {archive.name}")
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            safely = {"filter": "data"} if isinstance(packed, tarfile.TarFile) else {}  # zipfile has no other way
            with progress_bar(f"unpacking {archive.name}", len(names)) as advance:
                for name in names.values():
                    packed.extract(name, temporary, **safely)
                    advance()
        return _move({path: temporary / name for path, name in names.items()}, folder, force)
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{archive} is damaged or cut short ({reason[:120]}), nothing of it was unpacked: "
            "delete it and fetch it again"
        ) from error
    except OSError as error:
        raise explain_os_error(error, f"unpack {archive} into {folder}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sizes(archive: Path, packed: zipfile.ZipFile | tarfile.TarFile) -> dict[str, int]:
    """Name -> size in bytes of the files of an archive, in its order; InputError for links and the like."""
    if isinstance(packed, zipfile.ZipFile):  # its links come out as plain files
        found = [(info.filename, info.file_size) for info in packed.infolist() if not info.is_dir()]
    else:
        members = [member for member in packed.getmembers() if not member.isdir()]
        for member in members:
            if not member.isreg():
                raise InputError(
                    f"{archive} holds '{member.name}', which is not a plain file; nothing of it was unpacked"
                )
        while packed.fileobj.read(CHUNK):  # up to the checksum at the end, which tarfile does not reach
            pass
        found = [(member.name, member.size) for member in members]
    if len({PurePosixPath(name) for name, _ in found}) < len(found):
        raise InputError(f"{archive} holds a file twice; nothing of it was unpacked")
    return dict(found)


def _placed(archive: Path, folder: Path, names: list[str], inside: list[str], only: list[str] | None) -> dict[str, str]:
    """Path below `folder` -> name in the archive; InputError where a name leads elsewhere, or one is missing."""
    paths = {name: PurePosixPath(name) for name in names}
    for name, path in paths.items():
        if path.is_absolute() or ".." in path.parts or not path.parts or re.search(r"[\\\0]|^[A-Za-z]:", name):
            raise InputError(
                f"{archive} holds '{name}', a path outside of the target folder; nothing of it was unpacked"
            )
    paths = {name: path for name, path in paths.items() if not _clutter(path)}
    for start in map(PurePosixPath, inside):
        placed = {str(path.relative_to(start)): name for name, path in paths.items() if path.is_relative_to(start)}
        if placed and (only is not None or len(placed) == len(paths)):
            break
    else:
        listed = ", ".join(list(paths)[:5]) or "nothing"
        raise InputError(
            f"{archive} holds {listed}, not only files below {inside[0]}, as it should; nothing of it was unpacked: "
            f"look into it and put its files into {folder} by hand"
        )
    for path in only or []:
        if path not in placed:
            raise InputError(f"{archive} holds no {path}; nothing of it was unpacked")
    return {path: name for path, name in placed.items() if only is None or path in only}


def _clutter(path: PurePosixPath) -> bool:
    """Files that some systems add to archives."""
    return path.name.startswith("._") or path.name == ".DS_Store" or "__MACOSX" in path.parts


def _move(files: dict[str, Path], folder: Path, force: bool) -> tuple[dict[str, str], list[str]]:
    """Move unpacked files to their places."""
    written, kept = {}, []
    for path, file in files.items():
        target, sha256 = folder / path, hash_file(file)
        if target.exists() and not force and hash_file(target) != sha256:
            kept.append(path)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        written[path] = sha256
    return written, kept
