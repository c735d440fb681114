"""Preparation of a pruning: describe the model, open the calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from calibration.processes import Group
from calibration.resume import Checkpoint
from console.errors import InputError
from console.progress import console
from console.words import counted, share_of_matrices
from data.calibration import CalibrationBatches
from data.readers import make_reader
from data.tokenizer import load_tokenizer
from models.base import Batch, Model
from models.common.checkpoint import fingerprint
from models.layers import weights_in_matrices
from models.library.finding import skipped_lines
from pruners.settings import PruneConfig


def describe(model: nn.Module, name: str) -> None:
    """Print what was loaded and what can be pruned."""
    layers = model.prunable_layers()
    prunable, whole = weights_in_matrices(model)
    total = sum(p.numel() for p in model.parameters())
    share = share_of_matrices(prunable, whole)
    lines = [] if model.load_report is None else [str(model.load_report)]
    lines.append(f"{name}: {total:,} parameters, {counted(len(layers), 'layer')} with {share}")
    lines += [f"  not pruned  {line}" for line in skipped_lines(model.skipped)]
    console.print("\n".join(lines), markup=False)


def calibration_batches(model: nn.Module, config: PruneConfig) -> CalibrationBatches:
    """The calibration data of the model's sides; missing files are found before the work starts."""
    missing = [side for side in model.sides if side not in config.sides]
    if missing:
        raise InputError(f"the configuration has no data for the side '{missing[0]}': add it under `sides:`")
    tokenizer = load_tokenizer(model.tokenizer)
    readers = {name: make_reader(config.sides[name], model.image_shape, tokenizer) for name in model.sides}
    for name, reader in readers.items():
        if config.batch_size > (there := len(reader.source)):
            raise InputError(
                f"a batch of {config.batch_size} needs more than the {counted(there, 'sample')} of the side '{name}': "
                "lower --batch_size"
            )
    batches = CalibrationBatches(
        readers,
        config.batch_size,
        config.seed,
        config.num_workers,
        limit=config.num_batches,
        max_missing=config.max_missing,
    )
    batches.check_files(len(batches))
    return batches


def plain_samples(
    model: Model, config: PruneConfig, count: int, batch_size: int
) -> tuple[CalibrationBatches, Callable[[], Iterator[Batch]]]:
    """The first `count` samples of the first side, without augmentation, and a function that iterates over them.

    It gives batches of `batch_size`, the last of which may be smaller. InputError where the data has fewer samples.
    """
    plain = {side: _not_augmented(reader) for side, reader in config.sides.items()}
    config = replace(config, sides=plain, num_batches=math.ceil(count / batch_size), batch_size=batch_size)
    batches = calibration_batches(model, config)
    side = model.sides[0]
    there = min(len(batches) * batch_size, len(batches.data.sides[side].reader.source))  # the last may not be full
    if there < count:
        raise InputError(f"the data has {counted(there, 'sample')}, fewer than {count}: lower --samples")

    def samples() -> Iterator[Batch]:
        left = count
        for _, _, batch in batches.units((side,), 0, 1, 0, None):
            yield {name: tensor[:left] for name, tensor in batch.items()}
            left -= batch_size

    return batches, samples


def _not_augmented(reader: Any) -> Any:
    """A reader's configuration without augmentation."""
    if not hasattr(reader, "augmentation"):
        return reader
    return replace(reader, augmentation=replace(reader.augmentation, crop=[1.0, 1.0], flip=0.0, ops=0))


def weights_identity(model: nn.Module) -> dict[str, str]:
    """File and SHA-256 of the weights (`models.common.checkpoint.fingerprint`); "random" and "" for random ones."""
    if model.load_report is None:
        return {"file": "random", "sha256": ""}
    return {"file": model.load_report.source, "sha256": fingerprint(model)}


def all_failures(batches: CalibrationBatches | None, checkpoint: Checkpoint) -> list[str]:
    """Images that could not be read: by any process; before an interruption, by the first one only."""
    failed = set(batches.failed if batches is not None else ()) | set(checkpoint.remembered or ())
    return sorted(set().union(*Group.current().objects(failed)))
