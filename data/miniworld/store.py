"""Have a part of the mini world on disk: generate it once, whole, however many processes ask for it.

A part is written into a hidden folder and then moved into place; its manifest `world-<part>.json` is moved
last, so a part without a manifest does not exist yet. While one process draws, others wait on a lock that the
system itself drops when its holder ends: a killed process leaves no lock behind, only a file.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from console.errors import InputError, explain_os_error, nearest
from console.progress import console, progress_bar
from data.miniworld.expected import EXPECTED
from data.miniworld.parts import MEGABYTES, PARTS, SPLITS, VERSION, scaled
from data.miniworld.records import WRITERS
from data.miniworld.write import Writer, available_workers, process_pool
from storage.atomic import write_json
from storage.lock import locked

REPOSITORY = Path(__file__).resolve().parents[2]


def ensure(
    part: str,
    root: Path | str | None = None,
    seed: int = 0,
    workers: int | None = None,
    show: bool = True,
    scale: float = 1.0,
) -> Path:
    """The world's root folder, with a part in it; the part is generated on first use.

    root: default $MINIWORLD_DIR, else `cache/miniworld/seed<seed>-v<version>` below the repository.
    workers: processes (default: the CPUs at hand); the world does not depend on them.
    show: draw a progress bar on stderr.
    scale: share of each split's scenes, for tests; the first scenes are the same at every scale.
    """
    if part not in PARTS:
        raise InputError(f"the mini world has no part '{part}'{nearest(part, PARTS)}; its parts are {', '.join(PARTS)}")
    folder = Path(root) if root is not None else default_root(seed)
    if scale != 1.0 and root is None:
        raise InputError("a scaled mini world needs a root folder of its own; give one with root")
    for needed in (*PARTS[part], part):
        if not _is_there(folder, needed, seed, scale):
            with _lock(folder, needed, show):
                if not _is_there(folder, needed, seed, scale):  # another process may have drawn it meanwhile
                    _generate(folder, needed, seed, workers or available_workers(), show, scale)
        _warn_of_another_world(folder, needed)
    return folder


def default_root(seed: int) -> Path:
    """Where the world of a seed lies unless told otherwise."""
    chosen = os.environ.get("MINIWORLD_DIR")
    return Path(chosen) if chosen else REPOSITORY / "cache" / "miniworld" / f"seed{seed}-v{VERSION}"


def manifest_path(root: Path, part: str) -> Path:
    """The file that says a part is complete."""
    return root / f"world-{part}.json"


def read_manifest(root: Path, part: str) -> dict[str, Any] | None:
    """What a part was made of, or None where it has not been generated."""
    path = manifest_path(root, part)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is damaged; delete it and the part is drawn again") from error
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error


def _is_there(root: Path, part: str, seed: int, scale: float) -> bool:
    manifest = read_manifest(root, part)
    if manifest is None:
        return False
    for name, wanted in (("seed", seed), ("version", VERSION), ("scale", scale)):
        if manifest.get(name) != wanted:
            raise InputError(
                f"{root} holds a mini world of {name} {manifest.get(name)}, not {wanted}; "
                "choose another folder (--root or MINIWORLD_DIR) or delete this one"
            )
    return True


def _lock(root: Path, part: str, show: bool) -> contextlib.AbstractContextManager[None]:
    def waiting(holder: str) -> None:
        if show:
            console.print(f"waiting for process {holder}, which draws the mini world's {part} part")

    return locked(root / f".lock-{part}", f"write the mini world to {root}", waiting)


def _generate(root: Path, part: str, seed: int, workers: int, show: bool, scale: float) -> None:
    for left_over in root.glob(f".making-{part}-*"):  # of a killed process: the lock says nobody is at it
        shutil.rmtree(left_over, ignore_errors=True)
    _check_space(root, part, scale)
    temporary = root / f".making-{part}-{uuid.uuid4().hex[:8]}"
    splits = [name for name, split in SPLITS.items() if split.part == part]
    # a part without pictures of its own puts another part's scenes into words
    worded = [name for name, split in SPLITS.items() if split.part in (part, *PARTS[part])]
    scenes = sum(scaled(name, scale) for name in worded)
    try:
        with (
            process_pool(workers, scenes) as mapper,
            progress_bar(f"mini world: {part}", scenes, show=show) as bar,
        ):
            writer = Writer(temporary, seed, scale, mapper, bar)
            WRITERS[part](writer)
        manifest = {
            "part": part,
            "seed": seed,
            "version": VERSION,
            "scale": scale,
            "images": writer.images,
            "splits": {name: scaled(name, scale) for name in splits},
            "files": sorted(writer.files),
            "sha256": writer.digest(),
        }
        _move_into(temporary, root)
        write_json(manifest_path(root, part), manifest)
    except OSError as error:
        raise explain_os_error(error, f"write the mini world to {root}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@functools.cache  # once a process is enough
def _warn_of_another_world(root: Path, part: str) -> None:
    note = other_world(read_manifest(root, part))
    if note:
        console.print(f"[yellow]warning:[/] {note}")


def other_world(manifest: dict[str, Any]) -> str | None:
    """A sentence where a part of seed 0 differs from the recorded one, else None."""
    recorded = EXPECTED.get(manifest["part"])
    if (manifest["seed"], manifest["scale"]) != (0, 1.0) or recorded == manifest["sha256"]:
        return None
    return (
        f"the {manifest['part']} part of this mini world is not the recorded one (sha256 {manifest['sha256'][:12]}, "
        f"recorded {(recorded or 'none')[:12]}), so numbers measured on it do not compare with published ones; "
        "if its folder is old, delete it and the part is drawn anew, else this machine draws another world"
    )


def _move_into(source: Path, target: Path) -> None:
    """Move a tree's files into another tree; folders that are not there yet move as a whole."""
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _move_into(entry, place)
        else:
            entry.replace(place)


def _check_space(root: Path, part: str, scale: float) -> None:
    needed = MEGABYTES[part] * scale * 1e6
    free = shutil.disk_usage(root).free
    if free < needed:
        raise InputError(
            f"the mini world's {part} part needs about {needed / 1e6:.0f} MB and {root} has "
            f"{free / 1e6:.0f} MB free; free some space or choose another folder (--root or MINIWORLD_DIR)"
        )
