"""Write the pictures and texts of splits below a folder, and hash them while they are made.

The hash goes over raw pixels and the content of the texts, not over PNG bytes: those depend on the zlib that
packed them. It is a hash of sorted (file, hash) lines, so it does not depend on how many processes worked.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import multiprocessing
import os
import signal
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.miniworld.captions import draw_captions
from data.miniworld.paint import draw
from data.miniworld.parts import SHARD, SPLITS, scaled, scene_for, text_draws
from data.miniworld.regions import Box, draw_regions
from data.miniworld.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene
from storage.atomic import write_text

CHUNK = 256  # scenes a process draws at a time
ALONE = 1024  # fewer scenes than this are not worth starting processes for


@dataclass
class Writer:
    """A folder being filled for one part; `hashes` maps each file to the hash of its content."""

    folder: Path
    seed: int
    scale: float
    mapper: Callable[..., Iterable[Any]] = map
    advance: Callable[[int], None] = lambda steps: None
    hashes: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    images: int = 0

    def pictures(self, split: str, texts: str = "none") -> list[tuple[str, Any]]:
        """Paint a split and save its truth; returns (image path, texts) of every scene in order.

        texts: `captions` (a list of 5), `caption` (a list of 1), `regions`, or `none`.
        """
        count, step = scaled(split, self.scale), SHARD if split == "sbu" else CHUNK
        jobs = [
            (split, texts, start, min(start + step, count), self.seed, str(self.folder))
            for start in range(0, count, step)
        ]
        records, truth = [], {}
        for drawn, hashes in self.mapper(draw_chunk, jobs):
            for path, said, scene in drawn:
                records.append((path, said))
                truth[path] = scene
            self.hashes.update(hashes)
            self.advance(len(drawn))
        self.images += count
        self.json(f"truth/{split}.json", truth)
        return records

    def json(self, path: str, value: Any) -> None:
        """Write one annotation file and remember its hash."""
        write_text(self.folder / path, json.dumps(value) + "\n")  # without indentation json is ten times as fast
        self.files.append(path)
        self.hashes[path] = hash_json(value)

    def csv(self, path: str, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
        """Write one table and remember its hash."""
        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(header)
        table.writerows(rows)
        write_text(self.folder / path, buffer.getvalue())
        self.files.append(path)
        self.hashes[path] = hash_bytes(buffer.getvalue().encode())

    def digest(self) -> str:
        """One hash over everything written."""
        return combine(self.hashes)


def hash_bytes(content: bytes) -> str:
    """sha256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hash_json(value: Any) -> str:
    """sha256 of a value's canonical JSON: indentation and the order of keys do not matter."""
    return hash_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def hash_pixels(picture: np.ndarray) -> str:
    """sha256 of uint8 pixels [h, w, 3]."""
    return hash_bytes(np.ascontiguousarray(picture, dtype=np.uint8).tobytes())


def combine(hashes: dict[str, str]) -> str:
    """One hash of many files' hashes."""
    return hash_bytes("".join(f"{path} {hashes[path]}\n" for path in sorted(hashes)).encode())


def draw_chunk(
    job: tuple[str, str, int, int, int, str],
) -> tuple[list[tuple[str, Any, dict]], dict[str, str]]:
    """Draw scenes [start, stop) of a split: paint, save, put into words. Runs in a process of its own."""
    split, texts, start, stop, seed, folder = job
    about, drawn, hashes, shard = SPLITS[split], [], {}, []
    for index in range(start, stop):
        scene = scene_for(split, index, seed)
        (picture, boxes), path = draw(scene), about.path(index)
        said = _say(split, index, seed, scene, boxes, texts)
        drawn.append((path, said, describe_scene(scene, boxes)))
        hashes[path] = hash_pixels(picture)
        packed = pack_png(picture)
        if split == "sbu":
            shard.append((f"{index:09d}", packed, said[0]))
            hashes[path.removesuffix("png") + "txt"] = hash_bytes(said[0].encode())
        else:
            file = Path(folder) / path
            if index == start or not file.parent.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(packed)
    if split == "sbu":
        _write_shard(Path(folder) / about.path(start).rpartition("/")[0], shard)
    return drawn, hashes


def _say(split: str, index: int, seed: int, scene: Scene, boxes: list[Box], texts: str) -> Any:
    draws = text_draws(split, index, seed)
    if texts in ("captions", "caption"):
        count = 5 if texts == "captions" else 1
        return [caption.text for caption in draw_captions(draws, scene, SPLITS[split].phrasing, count)]
    return draw_regions(draws, scene, boxes) if texts == "regions" else None


def pack_png(picture: np.ndarray) -> bytes:
    """A PNG of uint8 pixels [h, w, 3], lightly packed (speed matters more than the last kilobyte).

    Written by hand in half the time of Pillow: all rows as differences to the row above (filter 2).
    """
    h, w, _ = picture.shape
    rows = np.full((h, 1 + 3 * w), 2, dtype=np.uint8)
    flat = picture.reshape(h, 3 * w)
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])  # wraps modulo 256, as PNG asks
    head = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)  # 8 bits, RGB, not interlaced
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _write_shard(path: Path, samples: list[tuple[str, bytes, str]]) -> None:
    """A webdataset shard: `<key>.png` and `<key>.txt` beside one another, without owners or dates."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, packed, caption in samples:
            for ending, content in (("png", packed), ("txt", caption.encode())):
                header = tarfile.TarInfo(f"{key}.{ending}")
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


def describe_scene(scene: Scene, boxes: list[Box]) -> dict[str, Any]:
    """The symbolic truth of a scene, for a truth file; `checker.load_truth` reads it back."""
    things = []
    for thing, box in zip(scene.things, boxes, strict=True):
        things.append(
            {
                "shape": SHAPES[thing.shape],
                "colour": COLOURS[thing.colour],
                "texture": TEXTURES[thing.texture],
                "size": SIZES[thing.size],
                "box": list(box),
                "x": thing.x,
                "y": thing.y,
                "radius": thing.radius,
                "turn": thing.turn,
                "tint": list(thing.tint),
                "phase": thing.phase,
            }
        )
    return {
        "background": BACKGROUNDS[scene.background],
        "tint": list(scene.tint),
        "clutter": scene.clutter,
        "key": f"{scene.key:016x}",  # 64 bits: more than the numbers of most JSON readers hold
        "objects": things,
    }


def available_workers() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def process_pool(workers: int, scenes: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """Yields an ordered `map` over `workers` processes, or the plain one where that is as good."""
    # a data loader's process is not allowed children of its own
    # a fork of a process whose libraries have started threads (torch) can wait for ever for a lock nobody holds
    if workers < 2 or scenes < ALONE or multiprocessing.current_process().daemon or "torch" in sys.modules:
        yield map
        return
    # forked workers need no import and no `if __name__` in the caller's script; they only draw and write
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with multiprocessing.get_context(method).Pool(workers, _ignore_interrupt) as pool:
        yield pool.imap


def _ignore_interrupt() -> None:
    """Ctrl-C ends the parent, which ends the pool: no traceback from every worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
