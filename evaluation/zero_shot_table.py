"""The measurements behind `evaluation.zero_shot`, which the configuration selects."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from configs.limits import at_least
from console.errors import InputError
from console.progress import progress_bar
from console.results import result_console
from console.words import counted
from data.batches import Side
from data.evaluation_batches import check_files
from data.readers import ReaderConfig, make_reader
from data.retrieval import Gallery
from data.sources import Files
from data.tokenizer import load_tokenizer
from evaluation.items import FILE, Groups, Items, items_files, write_items
from evaluation.named_classes import NamedClasses, NamedClassSettings, read_templates
from evaluation.neighbours import Neighbours, NeighbourSettings
from evaluation.recall import RECALL_WORDS, Ranks, found_early
from evaluation.regions import region_ious
from evaluation.retrieval import RetrievalSettings, evaluate_retrieval, reranked
from evaluation.text_pairs import TextPairs, TextPairSettings
from models import load_model
from models.base import Model
from models.tasks import ImageEmbedder, Locator, Retriever, TextEmbedder
from sparsity.mask import Mask
from storage.atomic import check_writable, write_json

Measurement = Callable[[nn.Module], tuple[dict[str, Any], Groups]]
"""A function of a model: its metrics in percent (and notes as text), and the scores of single items."""


@dataclass(frozen=True)
class ZeroShotConfig:
    """What to measure: every part that is given."""

    gallery: Files | None = None  # images and captions (one annotation file) for retrieval
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)  # batches and re-ranking
    images: int = 500  # size of the gallery
    max_words: int = 30  # words kept of a caption
    regions: ReaderConfig | None = None  # region batches, whose boxes are predicted
    region_batches: int = 15  # how many of them
    neighbours: NeighbourSettings | None = None  # classification by nearest neighbours
    classes: NamedClassSettings | None = None  # classification by class names
    texts: TextPairSettings | None = None  # retrieval of the other caption of the same picture

    def __post_init__(self) -> None:
        at_least(self, 1, "images", "max_words", "region_batches")


class ZeroShot:
    """The attributes that tables read of a task (training/task.py), for this evaluation."""

    name, words = "zero_shot", "zero-shot"
    main = ("itm r_mean", r"\d+-NN", "itc r_mean", "IoU", "top-1", "caption R@1")
    metric_words = RECALL_WORDS
    Config = ZeroShotConfig
    script = None


def evaluate_masks(args: argparse.Namespace, config: ZeroShotConfig, masks: list[str]) -> list[dict[str, Any]]:
    """Rows of numbers for the dense model (unless --no-dense) and each mask file, printed as a table."""
    if args.images is not None and config.gallery is None:
        raise InputError("--images is the size of the gallery, but the configuration has no 'gallery': leave it out")
    if args.images is not None and args.images < 1:
        raise InputError(f"--images must be at least 1, not {args.images}")
    if args.templates:
        if config.classes is None:
            raise InputError("--templates name classes, but the configuration has no 'classes': leave them out")
        config = replace(config, classes=replace(config.classes, templates=read_templates(args.templates)))
    files = [None, *masks] if args.dense else masks
    check_rows(args.json, len(files))
    model = load_model(args.model, weights=args.weights)
    if sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1:  # more than the patches of a transformer
        model.to(memory_format=torch.channels_last)  # convolutions take a third less time, the same to rounding
    for file in masks:  # before the first expensive second
        Mask.load(file).fitted(model)
    measured = measurements(model, config, config.images if args.images is None else args.images)
    rows, items = [], []
    with progress_bar("zero-shot", len(files)) as advance:
        for number, file in enumerate(files):
            pruned = model if file is None else masked_copy(model, file)
            row: dict[str, Any] = {"mask": "dense" if file is None else Path(file).stem}
            groups: Groups = {}
            for measure in measured.values():
                numbers, single = measure(pruned)
                row, groups = row | numbers, groups | single
            rows.append(row)
            items.append(groups)
            if len(args.json) == len(files):  # at once, so that nothing measured is lost
                write_rows(args.json[number], [row], [groups])
            advance(1)
    show(rows, f"{args.model}, zero-shot: {'; '.join(measured)}")
    if len(args.json) == 1 < len(files):
        write_rows(args.json[0], rows, items)
    return rows


def check_rows(paths: Sequence[str], rows: int) -> None:
    """InputError if the files of --json cannot take this number of rows."""
    if len(paths) not in (0, 1, rows):
        raise InputError(f"--json has {len(paths)} files for {counted(rows, 'row')}: give one, or one for each row")
    if len({Path(path).parent for path in paths}) < len(paths):
        raise InputError("--json has files in one folder: give each its own, since the scores of items lie next to it")
    for path in paths:
        check_json(path)


def check_json(path: str | None) -> None:
    """InputError if the file of --json has the name of the items' file, or cannot be written."""
    if path and Path(path).name == FILE:
        raise InputError(f"--json {path}: {FILE} is for the scores of single items: choose another name")
    if path and Path(path).is_dir():
        raise InputError(f"--json {path} is a folder: name the file to write")
    if path:
        check_writable(Path(path).parent)


def write_rows(path: str | None, rows: list[dict[str, Any]], items: list[Groups]) -> None:
    """Write the rows to the file of --json, if any, and the scores of single items next to it."""
    if path:
        for file, groups in zip(items_files(Path(path), [row["mask"] for row in rows]), items, strict=True):
            write_items(file, groups)
        write_json(path, rows)


def measurements(model: nn.Module, config: ZeroShotConfig, images: int) -> dict[str, Measurement]:
    """Description -> measurement, for each part of the configuration; the data are opened once.

    InputError if the configuration has no part, or the model does not support one.
    """
    tokenizer = load_tokenizer(model.tokenizer)
    found: dict[str, Measurement] = {}
    if config.gallery is not None:
        _require(model, "gallery", Retriever)
        gallery = Gallery(config.gallery, model.image_shape, config.max_words, images)
        check_files(gallery)

        def retrieve(pruned: nn.Module) -> tuple[dict[str, Any], Groups]:
            ranks: dict[str, Ranks] = {}
            recalls = evaluate_retrieval(pruned, gallery, tokenizer, config.retrieval, note=ranks.__setitem__)
            keys = ("img_r1", "txt_r1", "r_mean")
            numbers: dict[str, Any] = {f"{kind} {key}": values[key] for kind, values in recalls.items() for key in keys}
            if pruned.reranks:
                numbers["reranked"] = reranked(config.retrieval, gallery)
            return numbers, found_early({f"{kind} ": of for kind, of in ranks.items()}, gallery.image_of_text)

        found[f"retrieval among {counted(len(gallery), 'image')} and {counted(len(gallery.texts), 'text')}"] = retrieve
    if config.regions is not None:
        _require(model, "regions", Locator)
        side = Side("region", make_reader(config.regions, model.image_shape, tokenizer), 32, seed=0)

        def locate(pruned: nn.Module) -> tuple[dict[str, Any], Groups]:
            ious, pictures = region_ious(pruned, side, config.region_batches)
            return means("region", {"IoU": ious}, pictures)

        found["boxes of regions"] = locate
    if config.neighbours is not None:
        _require(model, "neighbours", ImageEmbedder)
        near, k = Neighbours(config.neighbours, model.image_shape), config.neighbours.k
        title = f"classes of {counted(len(near.queries), 'image')} by their {k} nearest of {len(near.bank)}"
        found[title] = lambda pruned: means("items", near.right(pruned))
    if config.classes is not None:
        _require(model, "classes", Retriever)
        named = NamedClasses(config.classes, model.image_shape, tokenizer)
        title = f"classes of {counted(len(named.images), 'image')} by {counted(len(named.names), 'name')}"
        found[title] = lambda pruned: means("classes", {"top-1": named.right(pruned)})
    if config.texts is not None:
        _require(model, "texts", TextEmbedder)
        pairs = TextPairs(config.texts, tokenizer)
        title = f"captions of {counted(len(pairs.pairs), 'picture')} among those of another file"
        title += f" ({pairs.left_out} left out)" * bool(pairs.left_out)
        found[title] = lambda pruned: means("items", {"caption R@1": pairs.right(pruned)})
    if not found:
        parts = "'gallery', 'regions', 'neighbours', 'classes' or 'texts'"
        raise InputError(f"the configuration names nothing to measure: give {parts}")
    return found


def means(
    group: str, scores: Mapping[str, Tensor], pictures: list[int] | None = None
) -> tuple[dict[str, float], Groups]:
    """A measurement from the scores [n] of items 0 to n - 1, by metric: their means in percent, with two digits.

    pictures: the picture of each item; None: each is a picture of its own.
    """
    single = {metric: of.double() for metric, of in scores.items()}
    ids = list(range(len(next(iter(single.values())))))
    items = Items(ids, ids if pictures is None else pictures, {metric: of.tolist() for metric, of in single.items()})
    return {metric: round(100 * of.mean().item(), 2) for metric, of in single.items()}, {group: items}


def _require(model: Model, part: str, protocol: type[Model]) -> None:
    if not isinstance(model, protocol):
        raise InputError(
            f"the configuration has '{part}', which a {type(model).__name__} does not support (it is no "
            f"{protocol.__name__}): leave the key '{part}' out"
        )
    if protocol in (Retriever, TextEmbedder) and model.tokenizer is None:
        raise InputError(
            f"the configuration has '{part}', whose texts need a tokenizer, but the model has none: put the "
            "tokenizer's files next to the model's config.json"
        )


def masked_copy(model: nn.Module, file: str) -> nn.Module:
    """The model with a mask applied; the model itself stays dense."""
    pruned = copy.deepcopy(model)
    Mask.load(file).apply(pruned)
    return pruned.eval().requires_grad_(False)


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the rows as a table; notes, which are the same for all rows, are its caption."""
    words = {name: value for name, value in rows[0].items() if isinstance(value, str) and name != "mask"}
    table = Table(title=title, caption="; ".join(f"{name}: {value}" for name, value in words.items()) or None)
    columns = [name for name in rows[0] if name not in words]
    for column in columns:
        table.add_column(column, justify="left" if column == "mask" else "right")
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    result_console().print(table)
