"""Write the pictures, texts and truth of splits below a folder."""

from __future__ import annotations

import csv
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.miniworld.captions import draw_captions, draw_regions
from data.miniworld.paint import boxes, paint
from data.miniworld.parts import SHARD, SPLITS, scaled, scene_for, text_draws
from data.miniworld.scene import BACKGROUNDS, NAMES, Box, Scene

CHUNK = 256  # scenes a process draws at a time


@dataclass
class Writer:
    """A folder being filled for one part; `files`: the texts and tables written, `images`: how many pictures."""

    folder: Path
    seed: int
    scale: float
    mapper: Callable[..., Iterable[Any]] = map
    advance: Callable[[int], None] = lambda steps: None
    files: list[str] = field(default_factory=list)
    images: int = 0

    def pictures(self, split: str, texts: str = "none") -> list[tuple[str, Any]]:
        """Paint a split and save its truth; returns (image path, texts) of every scene in order.

        texts: `captions` (a list of 5), `caption` (a list of 1), `regions`, or `none`.
        """
        count, step = scaled(split, self.scale), SHARD if split == "sbu" else CHUNK
        chunks = [range(start, min(start + step, count)) for start in range(0, count, step)]
        records, truth = [], {}
        for drawn in self.mapper(draw_chunk, [(split, texts, chunk, self.seed, self.folder) for chunk in chunks]):
            records += [(path, said) for path, said, _ in drawn]
            truth |= {path: scene for path, _, scene in drawn}
            self.advance(len(drawn))
        self.images += count
        self.json(f"truth/{split}.json", truth)
        return records

    def json(self, path: str, value: Any) -> None:
        """Write one annotation file."""
        self._text(path, json.dumps(value) + "\n")  # without indentation json is ten times as fast

    def csv(self, path: str, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
        """Write one table."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
        self._text(path, buffer.getvalue())

    def _text(self, path: str, text: str) -> None:
        self.files.append(path)
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")


def draw_chunk(job: tuple[str, str, range, int, Path]) -> list[tuple[str, Any, dict[str, Any]]]:
    """Paint some scenes of a split, save them, put them into words: (path, texts, truth) of each.

    job: split, texts as in `Writer.pictures`, scenes, seed, folder. Runs in a process of its own.
    """
    split, texts, indices, seed, folder = job
    drawn, files = [], {}
    for index in indices:
        scene = scene_for(split, index, seed)
        found, path = boxes(scene), SPLITS[split].path(index)
        if texts in ("captions", "caption"):
            said = captions_of(split, index, seed, scene, 5 if texts == "captions" else 1)
        else:
            said = draw_regions(text_draws(split, index, seed), scene, found) if texts == "regions" else None
        drawn.append((path, said, describe_scene(scene, found)))
        files[path] = pack_png(paint(scene))
        if split == "sbu":
            files[path.removesuffix("png") + "txt"] = said[0].encode()
    if split == "sbu":
        _write_shard(folder, files)
    else:
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
    return drawn


def captions_of(split: str, index: int, seed: int, scene: Scene, count: int) -> list[str]:
    """The captions of a scene of a split."""
    return [c.text for c in draw_captions(text_draws(split, index, seed), scene, SPLITS[split].phrasing, count)]


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


def _write_shard(folder: Path, files: dict[str, bytes]) -> None:
    """A webdataset shard of files `<shard>.tar/<key>.png` and `.txt`, without owners or dates."""
    shard = folder / next(iter(files)).rpartition("/")[0]
    shard.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path, content in files.items():
            header = tarfile.TarInfo(path.rpartition("/")[2])
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def describe_scene(scene: Scene, found: list[Box]) -> dict[str, Any]:
    """The symbolic truth of a scene, for a truth file; found: `boxes(scene)`."""
    things = []
    for thing, box in zip(scene.things, found, strict=True):
        words = {kind: names[getattr(thing, kind)] for kind, names in NAMES.items()}
        rest = {name: getattr(thing, name) for name in ("x", "y", "radius", "turn", "tint", "phase")}
        things.append({**words, "box": box, **rest})
    return {
        "background": BACKGROUNDS[scene.background],
        "tint": scene.tint,
        "clutter": scene.clutter,
        "key": f"{scene.key:016x}",  # 64 bits: more than the numbers of most JSON readers hold
        "objects": things,
    }
