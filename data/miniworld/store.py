"""Generate a part of the mini world on first use: once, and completely, for any number of processes.

A part is written into a hidden folder and then moved into place; its manifest `world-<part>.json` is moved last, so a
part without a manifest does not exist yet. While one process draws, others wait for it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from configs.schema import CONFIGS
from console.errors import InputError, explain_os_error
from console.progress import console, progress_bar
from data.miniworld.parts import PARTS, SPLITS, VERSION, check_name, scaled
from data.miniworld.records import WRITERS
from data.miniworld.verify import hash_part
from data.miniworld.write import Writer
from storage.atomic import write_json
from storage.lock import locked
from storage.space import check_room


def ensure(
    part: str, root: Path | str | None = None, seed: int = 0, workers: int = 1, show: bool = True, scale: float = 1.0
) -> Path:
    """The world's root folder, with a part in it; the part is generated on first use.

    root: default $MINIWORLD_DIR, else `cache/miniworld/seed<seed>-v<version>` below the repository.
    workers: processes that draw; the world does not depend on them. show: draw progress bars on stderr.
    scale: share of each split's scenes, for tests; the first scenes are the same at every scale.
    """
    check_name("part", part, PARTS)
    folder = Path(root) if root is not None else default_root(seed)
    for needed in filter(None, (PARTS[part].needs, part)):
        if not _is_there(folder, needed, seed, scale):
            waiting = f"another process draws the mini world's {needed} part" if show else ""
            with locked(folder / f".lock-{needed}", f"write the mini world to {folder}", waiting):
                if not _is_there(folder, needed, seed, scale):  # another process may have drawn it meanwhile
                    _generate(folder, needed, seed, workers, show, scale)
        _warn_of_another_world(folder, needed)
    return folder


def default_root(seed: int) -> Path:
    """The folder of the world of a seed, unless another is given."""
    chosen = os.environ.get("MINIWORLD_DIR")
    return Path(chosen) if chosen else CONFIGS.parent.resolve() / "cache" / "miniworld" / f"seed{seed}-v{VERSION}"


def read_manifest(root: Path, part: str) -> dict[str, Any] | None:
    """A part's manifest, or None where it has not been generated."""
    path = root / f"world-{part}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is damaged; delete it and the part is drawn again") from error
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error


def other_world(manifest: dict[str, Any]) -> str | None:
    """A sentence where a part of seed 0 differs from the recorded one, else None."""
    recorded = PARTS[manifest["part"]].sha256
    if (manifest["seed"], manifest["scale"]) != (0, 1.0) or recorded == manifest["sha256"]:
        return None
    return (
        f"the {manifest['part']} part of this mini world is not the recorded one (sha256 {manifest['sha256'][:12]}, "
        f"recorded {recorded[:12]}), so numbers measured on it do not compare with published ones; "
        "if its folder is old, delete it to draw the part again; otherwise this machine draws a different world"
    )


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


@functools.cache  # once a process is enough
def _warn_of_another_world(root: Path, part: str) -> None:
    note = other_world(read_manifest(root, part))
    if note:
        console.print(f"[yellow]warning:[/] {note}")


def _generate(root: Path, part: str, seed: int, workers: int, show: bool, scale: float) -> None:
    for left_over in root.glob(f".making-{part}-*"):  # of a killed process: this one holds the lock
        shutil.rmtree(left_over, ignore_errors=True)
    check_room(root, int(PARTS[part].megabytes * scale * 1e6), f"for the mini world's {part} part")
    temporary = root / f".making-{part}-{uuid.uuid4().hex[:8]}"
    splits = {name: scaled(name, scale) for name, split in SPLITS.items() if split.part == part}
    scenes = sum(scaled(name, scale) for name, split in SPLITS.items() if split.part in (part, PARTS[part].needs))
    try:
        with _mapper(workers) as mapper, progress_bar(f"mini world: {part}", scenes, show=show) as bar:
            writer = Writer(temporary, seed, scale, mapper, bar)
            WRITERS[part](writer)
        manifest = {
            "part": part,
            "seed": seed,
            "version": VERSION,
            "scale": scale,
            "images": writer.images,
            "splits": splits,
            "files": sorted(writer.files),
        }
        manifest["sha256"] = hash_part(temporary, manifest, show and scale == 1.0)
        _move_into(temporary, root)
        write_json(root / f"world-{part}.json", manifest)
    except OSError as error:
        raise explain_os_error(error, f"write the mini world to {root}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _mapper(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """An ordered `map` over processes; spawned, since a fork of a process with threads (torch) may wait for ever."""
    if workers == 1:
        yield map
        return
    ignore_interrupt = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which ends the pool
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, ignore_interrupt) as pool:
        yield pool.imap


def _move_into(source: Path, target: Path) -> None:
    """Move a tree's files into another tree; folders that are not there yet move as a whole."""
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _move_into(entry, place)
        else:
            entry.replace(place)
