"""Write Tux Paint's captioned stamps in the official formats: real pictures with real captions, from a Debian package.

    apt-get install tuxpaint-stamps-default   # GPL-2, 161 MB
    python -m data.stamps --languages de fr
Without the rights to install: `apt-get download` the package, `dpkg-deb -x` it, and give --source FOLDER. Class folders
are images/{train,val,test}/<class>; docs/data.md has the rest.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from console.errors import InputError, explain_os_error, nearest, run_command
from console.progress import console, progress_bar
from console.words import counted
from data.images import ImageError, ground_colour, read_image
from data.text import pre_caption
from storage.atomic import atomic_path, write_json
from storage.hashing import hash_file, hash_json

if TYPE_CHECKING:
    from PIL import Image

SOURCE = "/usr/share/tuxpaint/stamps"

ENGLISH = "en"

SVG = ".svg"

SHARES = {"test": 0.2, "val": 0.1}
"""Share of each class (at least one picture); the rest is for training."""

FEWEST = len(SHARES) + 1
"""Fewest pictures of a class, so that every split has all classes, with the same numbers."""


@dataclass
class Stamp:
    """A picture: its file, captions by language, hash; and where it goes."""

    file: Path
    name: str  # below the source, with "/"
    captions: dict[str, str]
    sha256: str
    kind: str = ""
    split: str = ""

    @property
    def path(self) -> str:
        """Below the folder of images; the folders on the way tell apart pictures of one name."""
        return f"{self.split}/{self.kind}/{self.name.rpartition('.')[0].replace('/', '-')}.png"


@dataclass
class Found:
    """What a folder of stamps has. left_out: reason -> names of pictures that are not used."""

    stamps: list[Stamp] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave(self, why: str, name: str) -> None:
        """Note that a picture is not used."""
        self.left_out.setdefault(why, []).append(name)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=SOURCE, help=f"folder of the stamps (default: {SOURCE})")
    parser.add_argument("--output_dir", default="data/stamps", help="output folder (default: data/stamps)")
    parser.add_argument(
        "--languages",
        nargs="*",
        default=[],
        metavar="CODE",
        help="languages besides English, such as de fr pt_BR (default: none)",
    )
    parser.add_argument("--ground", default="", help="colour behind transparent pictures (default: white)")
    parser.add_argument(
        "--depth", type=int, default=2, help="folder levels that name a class (default: 2, animals-birds)"
    )
    parser.add_argument(
        "--fewest",
        type=int,
        default=5,
        help="smallest number of pictures in a class; smaller classes join their parent (default: 5)",
    )
    return parser.parse_args()


def find_stamps(source: Path) -> Found:
    """The captioned PNG and SVG files of a folder, each picture once, in the order of names; InputError without any.

    All are read once: a class whose only picture of a split turned out broken would shift the labels of that split.
    """
    if not source.is_dir():
        raise InputError(
            f"there is no folder {source}: install the pictures (apt-get install tuxpaint-stamps-default), or unpack "
            "that package anywhere (dpkg-deb -x) and give its folder usr/share/tuxpaint/stamps as --source"
        )
    found, seen = Found(), {}
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".png", SVG))
    drawn = {path.with_suffix("") for path in files if path.suffix.lower() != SVG}
    for file in _counted("stamps read", files):
        name = file.relative_to(source).as_posix()
        if file.suffix.lower() == SVG and file.with_suffix("") in drawn:  # of other bytes: no hash shows it
            found.leave("SVG of a picture that is there as PNG", name)
            continue
        if file.suffix.lower() == SVG and not find_spec("resvg_py"):
            found.leave("SVG, which needs another package: pip install resvg-py", name)
            continue
        captions = read_captions(file.with_suffix(".txt"))
        sha256 = hash_file(file)
        if ENGLISH not in captions:
            found.leave("without a caption", name)
        elif sha256 in seen:  # in two splits it would be known before it is tested
            found.leave("the same picture again", name)
        elif _is_broken(file):
            found.leave("broken", name)
        else:
            seen[sha256] = name
            found.stamps.append(Stamp(file, name, captions, sha256))
    if not found.stamps:
        raise InputError(f"{source} has no picture with a caption (name.png with name.txt): give another --source")
    return found


def _counted(title: str, things: list[Any]) -> Iterator[Any]:
    with progress_bar(title, len(things)) as advance:
        for thing in things:
            yield thing
            advance()


def _is_broken(file: Path) -> bool:
    try:
        _picture(file, file.name, "")
    except ImageError:
        return True
    return False


def _picture(file: Path, name: str, ground: str) -> Image.Image:
    """A stamp as RGB over `ground`; ImageError naming it where it is broken. SVG is drawn at its own size."""
    if file.suffix.lower() != SVG:
        return read_image(file, name, ground)
    import resvg_py

    try:
        # At 0 dpi, its default, pictures measured in points have no size. Without fonts each machine draws the same.
        drawn = resvg_py.svg_to_bytes(svg_string=file.read_text("utf-8"), dpi=96.0, skip_system_fonts=True)
    except (OSError, ValueError) as error:
        raise ImageError(f"{name} (broken: {error})") from error
    return read_image(bytes(drawn), name, ground)


def read_captions(text: Path) -> dict[str, str]:
    """Language -> caption: the first line is English, the others are `de.utf8=...`; none where there is no such file.

    Captions without a word after preprocessing are none.
    """
    if not text.is_file():
        return {}
    try:
        first, *others = text.read_text(encoding="utf-8-sig").splitlines() or [""]
    except UnicodeDecodeError:
        return {}
    except OSError as error:
        raise explain_os_error(error, f"read the caption {text}") from error
    fields = [line.partition(".utf8=") for line in others]
    captions = {ENGLISH: first.strip()} | {code.strip(): said.strip() for code, mark, said in fields if mark}
    return {code: said for code, said in captions.items() if _has_words(said)}


def _has_words(caption: str) -> bool:
    try:
        return bool(pre_caption(caption, 1))
    except ValueError:
        return False


def sort_into_classes(found: Found, depth: int, fewest: int) -> None:
    """Give each picture its class, the first `depth` folders of its name, and its split.

    Classes of fewer pictures than `fewest` join those of the folder around; what is left at the top is left out.
    """
    for level in range(depth, 0, -1):
        for stamp in found.stamps:
            folders = stamp.name.split("/")[:-1][:level]
            stamp.kind = stamp.kind or "-".join(folders)
        small = {kind for kind, count in Counter(stamp.kind for stamp in found.stamps).items() if count < fewest}
        for stamp in found.stamps:
            if stamp.kind in small:
                stamp.kind = ""
    for stamp in found.stamps:
        if not stamp.kind:
            found.leave(f"in a class of fewer than {fewest} pictures", stamp.name)
    found.stamps = [stamp for stamp in found.stamps if stamp.kind]
    by_class: dict[str, list[Stamp]] = {}
    for stamp in sorted(found.stamps, key=lambda stamp: stamp.sha256):  # chance without a seed: names do not matter
        by_class.setdefault(stamp.kind, []).append(stamp)
    for stamps in by_class.values():
        splits = [split for split, share in SHARES.items() for _ in range(max(1, round(share * len(stamps))))]
        for stamp, split in zip(stamps, [*splits, *["train"] * len(stamps)], strict=False):
            stamp.split = split
    places: dict[str, Stamp] = {}
    for stamp in found.stamps:
        if (other := places.setdefault(stamp.path, stamp)) is not stamp:
            raise InputError(
                f"the pictures {other.name} and {stamp.name} would be written to one file, {stamp.path}: rename one"
            )


def write_stamps(
    source: Path, folder: Path, languages: list[str], ground: str = "", depth: int = 2, fewest: int = 5
) -> dict[str, Any]:
    """Pictures as RGB over `ground`, annotations of each language, and manifest.json, which is returned.

    InputError when there are no pictures, no such language, or the folder is there already.
    """
    if folder.exists():
        raise InputError(f"{folder} is there already: remove it, or choose another --output_dir")
    for option, value, least in (("--depth", depth, 1), ("--fewest", fewest, FEWEST)):
        if value < least:
            raise InputError(f"{option} is {value}: give {least} or more")
    ground_colour(ground)
    found = find_stamps(source)
    known = {code for stamp in found.stamps for code in stamp.captions}
    for code in languages:
        if code not in known:
            choices = ", ".join(sorted(known))
            raise InputError(f"no caption is in the language '{code}'{nearest(code, known)}: choose among {choices}")
    sort_into_classes(found, depth, fewest)
    if not found.stamps:
        raise InputError(f"no folder of {source} has {fewest} pictures, enough for a class: lower --fewest")
    languages = list(dict.fromkeys([ENGLISH, *languages]))
    with atomic_path(folder) as temporary:
        pictures = _write_pictures(found, temporary / "images", ground)
        missing = {}
        for code in languages:
            missing[code] = [stamp.name for stamp in found.stamps if code not in stamp.captions]
            _write_annotations([stamp for stamp in found.stamps if code in stamp.captions], code, temporary / "data")
        files = sorted(path for path in (temporary / "data").rglob("*.json"))
        manifest = {
            "ground": ground or "white",
            "languages": languages,
            "classes": sorted({stamp.kind for stamp in found.stamps}),
            "pictures": pictures,
            "annotations": {path.relative_to(temporary).as_posix(): hash_file(path) for path in files},
            "left_out": found.left_out,
            "missing_translations": {code: names for code, names in missing.items() if names},
        }
        manifest["hash"] = hash_json(manifest)
        write_json(temporary / "manifest.json", manifest)
    return manifest


def _write_pictures(found: Found, folder: Path, ground: str) -> dict[str, Any]:
    """The pictures; returns what the manifest says of each."""
    pictures = {}
    for stamp in _counted("pictures written", found.stamps):
        place = folder / stamp.path
        place.parent.mkdir(parents=True, exist_ok=True)
        _picture(stamp.file, stamp.name, ground).save(place, compress_level=1)
        said = {"source": stamp.name, "source_sha256": stamp.sha256, "sha256": hash_file(place)}
        pictures[stamp.path] = {"split": stamp.split, "class": stamp.kind} | said
    return pictures


def _write_annotations(stamps: list[Stamp], code: str, folder: Path) -> None:
    """The files of docs/data.md for one language; other ones than English have it before the ending."""
    ending = ".json" if code == ENGLISH else f".{code}.json"
    pairs = {split: [] for split in ("train", *SHARES)}
    for stamp in stamps:
        # A number is what COCO's ground truth has; that of the picture's bytes does not depend on the other pictures.
        number = int(stamp.sha256[:12], 16)
        pairs[stamp.split].append({"image": stamp.path, "image_id": number, "caption": stamp.captions[code]})
    files: dict[str, Any] = {f"pretrain/cc3m_pretrain{ending}": [{**p, "dataset": "cc3m"} for p in pairs["train"]]}
    for split, found in pairs.items():
        # retrieval is tested on images with their captions, and trained on captions
        grouped = found if split == "train" else [{**pair, "caption": [pair["caption"]]} for pair in found]
        files[f"finetune/itr/coco_{split}{ending}"] = grouped
        files[f"finetune/ic/coco_karpathy_{split}{ending}"] = found
        if split != "train":
            files[f"finetune/ic/coco_karpathy_{split}_gt{ending}"] = {
                "images": [{"id": pair["image_id"]} for pair in found],
                "annotations": [{"id": i, **pair} for i, pair in enumerate(found)],
            }
    for name, records in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Write, and say what was written and what was not."""
    args = parse_args()
    folder = Path(args.output_dir)
    made = write_stamps(Path(args.source), folder, args.languages, args.ground, args.depth, args.fewest)
    splits = Counter(picture["split"] for picture in made["pictures"].values())
    shares = ", ".join(f"{splits[split]} {split}" for split in ("train", *SHARES))
    kinds = len(made["classes"])
    console.print(f"{folder}: {counted(sum(splits.values()), 'picture')} ({shares}) in {counted(kinds, 'class')}")
    for why, names in made["left_out"].items():
        console.print(f"left out: {counted(len(names), 'picture')}, {why} (first: {names[0]})", markup=False)
    for code, names in made["missing_translations"].items():
        console.print(f"no translation to {code}: {counted(len(names), 'picture')} (first: {names[0]})", markup=False)


if __name__ == "__main__":
    run_command(main)
