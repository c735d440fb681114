"""Image-text pairs in webdataset shards (`<key>.jpg` + `<key>.txt` or `<key>.json` in tar files), read at random.

The webdataset library reads shards in sequence, which ties batches to the number of workers. Here the headers of
a shard are scanned once, and any sample is then one seek away.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

from braceexpand import braceexpand

from console.errors import InputError, explain_os_error
from console.words import agreed, counted
from data.records import is_caption
from data.text import TextError

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
TEXTS = (".txt", ".json", ".caption")


@dataclass(frozen=True)
class Member:
    """Where a file lies within a tar file, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class ShardSample:
    """One pair: the shard, the key, and where its image and text lie."""

    shard: str
    key: str
    image: Member
    text: Member
    is_json: bool

    def read(self) -> tuple[bytes, str]:
        """Encoded image and caption; TextError when there is no caption."""
        with Path(self.shard).open("rb") as file:
            file.seek(self.image.offset)
            image = file.read(self.image.size)
            file.seek(self.text.offset)
            text = file.read(self.text.size).decode("utf-8", errors="replace")
        if self.is_json:
            lacking = TextError(f"{self.shard}: {self.key}.json has no 'caption' that is a text")
            try:
                text = json.loads(text)["caption"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise lacking from error
            if not is_caption(text):
                raise lacking
        return image, text


def expand_shards(pattern: str) -> list[str]:
    """The shards of a pattern such as images/sbu/{00000..00099}.tar; InputError naming those missing."""
    paths = list(braceexpand(pattern))
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        those = f"{counted(len(missing), 'shard', of=len(paths))} of {pattern} {agreed(len(missing), 'is')}"
        raise InputError(f"{those} missing (first: {missing[0]})")
    return paths


def index_shard(path: str) -> list[ShardSample]:
    """All pairs of a tar file in its order; InputError when it is damaged or has none."""
    images: dict[str, Member] = {}
    texts: dict[str, tuple[Member, bool]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                stem, dot, extension = Path(member.name).name.partition(".")
                key = str(Path(member.name).with_name(stem))
                suffix = f"{dot}{extension}".lower()
                where = Member(member.offset_data, member.size)
                if suffix in IMAGES:
                    images[key] = where
                elif suffix in TEXTS and (suffix != ".json" or key not in texts):
                    texts[key] = (where, suffix == ".json")
    except OSError as error:
        raise explain_os_error(error, f"read the shard {path}") from error
    except tarfile.TarError as error:
        raise InputError(f"{path} is damaged or no tar file: fetch it again") from error
    samples = [ShardSample(path, key, image, *texts[key]) for key, image in images.items() if key in texts]
    if not samples:
        raise InputError(f"{path} holds no pair of an image and a text of the same key")
    return samples
