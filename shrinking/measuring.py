"""A table of errors by a criterion that uses data: the calibration data of a model's configuration."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from calibration.processes import Group
from calibration.resume import Checkpoint
from calibration.statistics import Statistic
from calibration.stream import device_of, to_device
from console.interrupt import interrupt
from data.calibration import data_identity
from models.base import Model
from models.small import base_of
from pruners.preparing import plain_samples, weights_identity
from pruners.settings import PruneConfig
from shrinking.checking import tell_what_stays
from shrinking.errors import Errors, Values, groups_of, restricted
from shrinking.gradients import influence, taylor
from shrinking.mope import mope
from shrinking.scores import default_score, score_of
from shrinking.screening import Screen
from shrinking.weights import magnitudes
from training.fabric import without_training

BATCH = 32

_ALONE = Group()  # each process fits the same classifier, to all samples

MOPE = ("order", "ffn_scope", "screen", "keep")
"""Options of mope only."""


def measured(
    load: Callable[[], Model], config: PruneConfig, args: argparse.Namespace, about: Mapping[str, Any], path: Path
) -> tuple[Errors, bool]:
    """The table, and whether this process writes it. load: returns the model; about: further settings.

    config: its data. args: options of shrink.py measure. path: of the table, next to which the checkpoint is saved.
    """
    fabric = without_training(args.accelerator, args.devices, 1, "32-true")
    interrupt.listen()
    model = fabric.to_device(load())
    if fabric.is_global_zero:
        tell_what_stays(model)
    name = args.score or default_score(model)
    score = score_of(model, name)
    batches, samples = plain_samples(model, replace(config, seed=args.seed), args.samples, BATCH)
    about = {
        **about, "score": name, "samples": args.samples, "weights": weights_identity(model),
        "base_sha256": base_of(model), "data": data_identity(batches),
        **{key: getattr(args, key) for key in MOPE if args.criterion == "mope"},
    }  # fmt: skip
    chosen = partial(restricted, model, kinds=args.kinds, tower=args.tower)
    chosen({})  # rejects unknown kinds and towers before anything is measured
    with _classifier_fitted(model, samples):
        values: Values = {}
        if args.criterion == "influence":
            values = influence(model, samples, args.seed)
        elif args.criterion == "taylor" or args.screen < 1 or args.order == "taylor":
            values = taylor(model, samples, score.loss, args.seed)
        if args.criterion != "mope":
            return Errors.of(model, chosen(values), args.group, about), fabric.is_global_zero
        checkpoint = Checkpoint(
            path.with_suffix(".resume"), about, every=0, resume=args.resume, write=fabric.is_global_zero
        )
        groups = groups_of(model, chosen(_order(model, args.order, values)), args.group)
        screen = Screen(values, args.screen, args.keep) if args.screen < 1 else None
        together = args.ffn_scope == "all"
        table = mope(model, samples, score, groups, args.seed, None, checkpoint, together, screen)
        return replace(table, about=about), fabric.is_global_zero


def _order(model: Model, order: str, first: Values) -> Values:
    """The importance by which neurons are ordered before grouping. first: Taylor's."""
    if order == "taylor":
        return {name: found.nan_to_num() for name, found in first.items()}
    found = magnitudes(model, 0)
    return found if order == "magnitude" else {name: values * 0 for name, values in found.items()}


@contextlib.contextmanager
def _classifier_fitted(model: Model, samples: Callable[[], Any]) -> Any:
    """Fit a classifier to the samples if the model has none (DINO); remove it on exit."""
    statistic: Statistic | None = model.preliminary()
    if statistic is None:
        yield
        return
    model.eval()
    for batch in samples():
        statistic.update(to_device(batch, device_of(model)))
        statistic.merge(_ALONE, [0])
    statistic.finish()
    try:
        yield
    finally:
        statistic.undo()
