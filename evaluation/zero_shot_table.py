"""The measurements behind `evaluation.zero_shot`."""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from console.progress import progress_bar
from data.batches import Side
from data.readers import ReaderConfig, make_reader
from data.retrieval import Gallery
from data.sources import Files
from data.tokenizer import load_tokenizer
from evaluation.regions import mean_iou
from evaluation.retrieval import RetrievalSettings, evaluate_retrieval
from models import load_model
from pruners.mask import Mask
from storage.atomic import write_json


@dataclass(frozen=True)
class ZeroShotConfig:
    """gallery: images and captions (one annotation file). regions: boxes to find (None: the model has no box head)."""

    gallery: Files
    retrieval: RetrievalSettings
    images: int = 500
    max_words: int = 30
    regions: ReaderConfig | None = None
    region_batches: int = 15


def evaluate_masks(args: argparse.Namespace, config: ZeroShotConfig, masks: list[str]) -> list[dict[str, Any]]:
    """Rows of numbers for the dense model and each mask file, printed as a table."""
    model = load_model(args.model, weights=args.weights)
    tokenizer = load_tokenizer(model.tokenizer)
    gallery = Gallery(config.gallery, model.image_shape, config.max_words, args.images or config.images)
    side = None
    if config.regions is not None:
        side = Side("region", make_reader(config.regions, model.image_shape, tokenizer), 32, seed=0)
    rows = []
    with progress_bar("zero-shot", len(masks) + 1) as advance:
        for file in [None, *masks]:
            pruned = model if file is None else masked_copy(model, file)
            found = evaluate_retrieval(pruned, gallery, tokenizer, config.retrieval)
            row: dict[str, Any] = {"mask": "dense" if file is None else Path(file).stem}
            for kind, recalls in found.items():
                row |= {f"{kind} {key}": recalls[key] for key in ("img_r1", "txt_r1", "r_mean")}
            if side is not None:
                row["IoU"] = round(mean_iou(pruned, side, config.region_batches), 2)
            rows.append(row)
            advance(1)
    show(rows, f"{args.model}, zero-shot on {len(gallery)} images and {len(gallery.texts)} texts")
    if args.json:
        write_json(args.json, rows)
    return rows


def masked_copy(model: nn.Module, file: str) -> nn.Module:
    """The model with a mask applied; the model itself stays dense."""
    pruned = copy.deepcopy(model)
    Mask.load(file).apply(pruned)
    return pruned.eval().requires_grad_(False)


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the rows."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "mask" else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(soft_wrap=True).print(table)
