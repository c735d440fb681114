"""Checks of the options of measure, plan and recipes, before anything is trained or measured."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from configs.limits import at_least
from console.errors import InputError, nearest
from console.progress import console
from models.library.finding import skipped_lines
from models.parts import left_whole
from shrinking import CRITERIA, MEASURED
from shrinking.options import SHARES, TARGETS

if TYPE_CHECKING:
    from models.base import Model

ORDERS = ("taylor", "magnitude", "stored")
"""Criteria that order neurons before they are grouped, for `mope`."""

OF_MOPE = {"order": "taylor", "ffn_scope": "layer", "screen": 1.0, "resume": False}
"""Options of mope only, and their defaults."""


def check_measuring(args: argparse.Namespace, criteria: tuple[str, ...] = (*MEASURED, *CRITERIA)) -> None:
    """InputError for invalid values, and for options of mope with another criterion.

    args: options of shrink.py measure, or those of them that a recipe has. criteria: the allowed ones.
    """
    at_least(args, 1, "group", "devices")
    if not 0 <= args.seed < 2**63:
        raise InputError(f"--seed is a whole number from 0 to 2^63 - 1, not {args.seed}")
    if args.criterion not in criteria:
        near = nearest(args.criterion, criteria)
        raise InputError(f"unknown criterion '{args.criterion}'{near}: choose one of {', '.join(criteria)}")
    for name, usual in OF_MOPE.items():
        if args.criterion != "mope" and (value := getattr(args, name, usual)) != usual:
            said = f"--{name}" if value is True else f"--{name} {value}"
            raise InputError(f"{said} is for --criterion mope, and {args.criterion} does not use it: leave it out")
    if args.score and args.criterion not in ("mope", "taylor"):
        raise InputError(f"{args.criterion} measures no score: leave --score out, or choose mope or taylor")
    if (order := getattr(args, "order", ORDERS[0])) not in ORDERS:
        raise InputError(f"unknown order '{order}'{nearest(order, ORDERS)}: choose {', '.join(ORDERS)}")
    if not 0 < args.screen <= 1:
        raise InputError(f"--screen is a share that is measured, above 0 and at most 1, not {args.screen:g}")
    if not 0 < args.keep <= 1:
        raise InputError(f"--keep is the share to keep, above 0 and at most 1, not {args.keep:g}")
    if args.criterion in MEASURED and args.samples < 2:
        raise InputError(f"--samples must be at least 2, not {args.samples}")


def check_plan(args: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """The target, if any, and the shares that are given for single kinds. args: options of shrink.py plan.

    InputError if options contradict one another, or one has no effect.
    """
    target = {name: getattr(args, name) for name in TARGETS if getattr(args, name) is not None}
    shares = {kind: getattr(args, f"keep_{name}") for name, kind in SHARES.items()}
    shares = {kind: share for kind, share in shares.items() if share is not None}
    if target and (shares or args.keep is not None or len(target) > 1):
        raise InputError(f"--{next(iter(target))} is a target: leave out shares and other targets")
    if target and args.scope == "layer":
        raise InputError(f"--{next(iter(target))} compares groups of all layers: leave out --scope layer")
    at_least(args, 1, "round", "batch_size")
    if args.batch_size > 1 and not target.keys() & {"flops", "latency"}:
        raise InputError("--batch_size is for --flops and --latency: leave it out")
    return target, shares


OF_REPAIR = {"samples": 500, "config": None, "on_test": False}
"""Options of cut that only its --repair reads, and their defaults."""


def check_cut(args: argparse.Namespace) -> None:
    """InputError for values out of range, and for options of --repair without it. args: options of shrink.py cut."""
    at_least(args, 1, "repeats", "samples")
    for name, usual in OF_REPAIR.items():
        if not args.repair and getattr(args, name) != usual:
            raise InputError(f"--{name} is for --repair, the only part of cut that reads data: add it, or leave it out")


def check_parts(model: Model, args: argparse.Namespace) -> None:
    """InputError for a score, a tower, kinds or protected names that the model does not have. args: of a recipe."""
    import torch

    from models.parts import all_sets
    from shrinking.errors import restricted
    from shrinking.scores import default_score, score_of

    score = args.score or default_score(model)
    score_of(model, score)
    sets = all_sets(model)
    inside = restricted(model, {one.name: torch.zeros(one.count) for one in sets}, None, args.tower)
    has = {one.kind for one in sets if one.name in inside}
    where = "" if args.tower == "both" else f" in its {args.tower} tower"
    if args.keep_layers < 1 and "layers" not in has:
        raise InputError(f"{args.model} has no layers that can be removed{where}: give --keep_layers 1")
    if args.keep < 1 and not has - {"layers"}:
        raise InputError(f"{args.model} has no heads, neurons or channels that can be removed{where}: give --keep 1")
    if args.criterion in MEASURED and score in ("itc", "recall") and args.tower not in ("vision", "text", "both"):
        raise InputError(f"--score {score} compares images and texts before {args.tower}: give --score loss")
    names = [one.name for one in sets]
    for part in args.protect:
        if not any(part in name for name in names):
            raise InputError(f"--protect: '{part}' is in no name of a removable part, such as {names[0]}")


def tell_what_stays(model: Model) -> None:
    """A line for each reason why prunable layers have no removable units."""
    for line in skipped_lines(left_whole(model)):
        console.print(f"  stays whole  {line}", markup=False)
