"""Further formats of image-text pairs: LLaVA's conversations, a folder of pictures with text files, and data sets of
Hugging Face's datasets library (saved to disk, or parquet files). They are read by `data.sources.Pairs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from console.errors import InputError, explain_os_error
from data.images import IMAGE_SUFFIXES, ImageError, is_hidden
from data.records import Record, is_caption, is_text
from data.text import TextError

ANSWERS = {"gpt", "assistant"}
"""Speakers whose turns are answers in a conversation."""

CAPTIONS = ("caption", "captions", "text")
"""Names of the column of captions in a saved data set, by preference."""

IMAGES = ("image", "img", "picture", "jpg", "png")
"""Names of the column of images, by preference."""


def with_captions(records: list[Record], path: Path | str) -> list[Record | None]:
    """Records with the answers of `conversations` as captions; None in place of those without an image.

    InputError naming the first conversation that has no answer.
    """
    kept: list[Record | None] = []
    for index, record in enumerate(records):
        if "conversations" not in record or "caption" in record:
            kept.append(record)
        elif "image" not in record:  # some of LLaVA's instructions have no image
            kept.append(None)
        else:
            turns = record["conversations"]
            turns = turns if isinstance(turns, list) else []
            said = [t.get("value") for t in turns if isinstance(t, dict) and str(t.get("from")) in ANSWERS]
            if not said or not all(map(is_text, said)):
                raise InputError(
                    f"{path}: record {index} has a conversation without an answer: turns are {{from, value}}, and "
                    "from is gpt in an answer"
                )
            kept.append(record | {"caption": said[0] if len(said) == 1 else said})
    if all(record is None for record in kept):
        raise InputError(f"{path} has no record with an image: the data set is empty")
    return kept


def folder_pairs(folder: Path) -> tuple[list[Record], list[str], list[str]]:
    """The pictures below a folder that have a text file of their name, each line a caption, in the order of names.

    And the names of those that have none, and of text files without a picture. InputError where there is no folder, or
    nothing in it.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: unpack the pictures with their texts there")
    records, without, texts = [], [], set()
    for file in sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES):
        name = file.relative_to(folder).as_posix()
        if is_hidden(name):
            continue
        texts.add(text := file.with_suffix(".txt"))
        try:
            lines = [line.strip() for line in text.read_text(encoding="utf-8-sig").splitlines()]
        except FileNotFoundError:
            lines = []
        except UnicodeDecodeError as error:
            raise InputError(f"{text} is not UTF-8 text: write it again, or remove it") from error
        except OSError as error:
            raise explain_os_error(error, f"read the caption {text}") from error
        said = [line for line in lines if line]
        if said:
            records.append({"image": str(file), "caption": said[0] if len(said) == 1 else said})
        else:
            without.append(name)
    if not records:
        raise InputError(f"{folder} has no picture with a text file of its name (a.jpg with a.txt): check the folder")
    others = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.txt")) if path not in texts)
    return records, without, [name for name in others if not is_hidden(name)]


@dataclass(frozen=True)
class SavedPair:
    """One row of a saved data set; row(index): its columns."""

    place: str
    index: int
    row: Callable[[int], Record]
    columns: tuple[str, str]

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.place}: row {self.index}"

    def read(self) -> tuple[bytes | str, Any]:
        """The encoded image, or the path of its file; and the caption. TextError for a value that is no text,
        ImageError for a row without an image.
        """
        row = self.row(self.index)
        image, caption = (row[column] for column in self.columns)
        if not is_caption(caption):
            raise TextError(f"{self.name} has no caption that is a text")
        if image is None or not (image["bytes"] or image["path"]):
            raise ImageError(f"{self.name} (no image)")
        return image["bytes"] or str(image["path"]), caption


def saved_pairs(place: str) -> tuple[list[SavedPair], list[str]]:
    """All rows of a data set: a folder that `save_to_disk` wrote, or parquet files (a file, or a folder of them).

    And the files that contain them. InputError where the library or the data set is missing, or has no images or texts.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{place} needs another package: pip install datasets") from error
    if Path(place, "dataset_dict.json").is_file():
        splits = ", ".join(sorted(path.name for path in Path(place).iterdir() if path.is_dir()))
        raise InputError(f"{place} has several splits ({splits}): name the folder of one of them")
    alone = place.endswith(".parquet") and Path(place).is_file()
    parquet = [place] if alone else sorted(map(str, Path(place).glob("*.parquet")))
    try:
        found = datasets.Dataset.from_parquet(parquet) if parquet else datasets.load_from_disk(place)
    except IndexError as error:  # what the library says of a data set without a shard
        raise InputError(f"{place} has no rows: the data set is empty") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"{place} is not a data set that the datasets library can read ({str(error)[:100]})"
        ) from error
    columns = tuple(_column(found, names, what, place) for names, what in ((IMAGES, "images"), (CAPTIONS, "captions")))
    image = found.features[columns[0]]
    if not isinstance(image, datasets.Image) and not (isinstance(image, dict) and {"bytes", "path"} <= set(image)):
        raise InputError(
            f"{place} has no images in its column '{columns[0]}', but {image}: give a data set with images"
        )
    # Pictures stay encoded: they are decoded in one place, data/images.py.
    found = found.cast_column(columns[0], datasets.Image(decode=False)).select_columns(list(columns))
    files = parquet or sorted({one["filename"] for one in found.cache_files})
    return [SavedPair(place, index, found.__getitem__, columns) for index in range(len(found))], files


def _column(found: Any, names: tuple[str, ...], what: str, place: str) -> str:
    for name in names:
        if name in found.column_names:
            return name
    there = ", ".join(found.column_names)
    raise InputError(f"{place} has no column of {what} ({', '.join(names)}), but {there}: rename the one that has them")
