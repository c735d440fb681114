"""MoPE-CLIP's two recipes. Each step writes a file or folder, and a repeated command skips finished steps.

finetuning   a model that is finetuned on a task: width, distil, depth, distil
pretraining  a pretrained model: width and depth of all towers at once, distil
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.limits import at_least
from console.errors import InputError
from console.progress import console
from models import file_name
from models.base import Model
from models.parts import Kept, all_sets
from models.small import of_base, save_small
from models.surgery import cut
from shrinking.checking import check_measuring
from shrinking.choosing import Limits, by_shares
from shrinking.errors import Errors, towers_of
from storage.atomic import read_json, write_json

WIDTH = ("heads", "neurons", "channels")

RECIPES = ("mope", "taylor", "magnitude", "random")
"""Criteria that measure heads and neurons, as recipes need."""

SETTINGS = "recipe.json"
"""Settings of a recipe, in its folder."""

NO_IDENTITY = ("output", "repeats", "accelerator", "devices")


def start_recipe(args: argparse.Namespace, below: Path) -> tuple[Limits, Path]:
    """The limits of a recipe, and its folder, where its settings are saved.

    InputError when the folder has steps of another recipe.
    """
    name = f"{file_name(args.model)}_{args.task or args.command}_keep{args.keep:g}_seed{args.seed}"
    folder = Path(args.output or below / name)
    refuse_other(args, folder)
    return Limits(() if args.tower == "both" else (args.tower,), tuple(args.protect), args.round), folder


def refuse_other(args: argparse.Namespace, folder: Path, save: bool = True) -> None:
    """Save the settings in the folder, on request; InputError when it has steps with others."""
    asked = {key: value for key, value in sorted(vars(args).items()) if key not in NO_IDENTITY}
    path = folder / SETTINGS
    if path.is_file():
        before = read_json(path)
        if other := [key for key in {**before, **asked} if before.get(key) != asked.get(key)]:
            raise InputError(
                f"{folder} has steps with another {other[0]} ({before.get(other[0])}, now {asked.get(other[0])}): give "
                "another folder with --output, or remove it"
            )
    elif save:
        write_json(path, asked)


def check_shares(args: argparse.Namespace) -> None:
    """InputError for shares outside (0, 1], shares that remove nothing, and contradictory options."""
    for name in ("keep", "keep_layers"):
        if not 0 < getattr(args, name) <= 1:
            raise InputError(f"--{name} is the share to keep, above 0 and at most 1, not {getattr(args, name):g}")
    if args.keep == args.keep_layers == 1:
        raise InputError("--keep and --keep_layers are both 1: nothing would be removed")
    if args.distil == "none" and any(getattr(args, name) is not None for name in ("sim", "feat", "hidden")):
        raise InputError("--distil none has no teacher: leave --sim, --feat and --hidden out")
    check_measuring(args, RECIPES)
    at_least(args, 1, "devices", "round", "rounds", "group", "repeats", *(["steps"] if "steps" in args else []))
    at_least(args, 0, "sim", "feat", "hidden", *(["lr"] if "lr" in args else []))


@dataclass(frozen=True)
class Steps:
    """The steps of a recipe, as functions from the script.

    load(name, weights): the task's model. measure(name, weights, file, shares): writes a table of the errors of these
    kinds, of which shares will be kept.
    train(name, folder, options): a run of the task's script in the folder. cut(model, kept): the smaller model.
    """

    load: Callable[[str, str | None], Model]
    measure: Callable[[str, str | None, Path, Mapping[str, float]], None]
    train: Callable[[str, Path, list[str]], None]
    cut: Callable[[Model, Kept], Model] = cut


def weights_of(run: Path) -> str:
    """The final weights of a run: the best, else the last."""
    return str(next(path for name in ("best", "last") if (path := run / f"{name}.safetensors").is_file()))


def finished(run: Path) -> bool:
    """Whether a run has written its results."""
    return (run / "results.json").is_file()


def metrics_of(run: Path) -> dict[str, float]:
    """The numbers of a finished run."""
    return json.loads((run / "results.json").read_text())["metrics"]


def distilled(
    steps: Steps,
    name: str,
    teacher: str | None,
    weights: str,
    run: Path,
    about: Mapping[str, Any],
    also: Sequence[str] = (),
) -> Path:
    """Train a smaller model with its teacher, if any; returns the folder of the result, `RUN/small`.

    also: more options of the task's script.
    """
    whole = [] if teacher is None else ["--teacher", teacher, "--teacher_weights", weights]
    small = run / "small"
    if not finished(run):
        steps.train(name, run, ["--dense", *whole, *also])
    if not small.exists():
        save_small(small, steps.load(name, weights_of(run)), about)
    return small


def cut_by(
    steps: Steps, name: str, weights: str | None, shares: Mapping[str, float], limits: Limits, at: Path, rounds: int = 1
) -> str:
    """Measure, plan, cut; returns the smaller model's name. at: its folder; the table is next to it.

    rounds: number of equal parts, each measured on the result of the one before, since errors are not additive.
    """
    now, now_weights, counts = name, weights, None
    for number in range(1, rounds + 1):
        part = {kind: 1 - (1 - share) * number / rounds for kind, share in shares.items()}
        if rounds > 1:
            model = steps.load(now, now_weights)
            left = {kind: counted_units(model, kind, limits) for kind in shares}
            counts = counts or left
            part = {kind: min(1.0, share * counts[kind] / left[kind]) for kind, share in part.items() if left[kind]}
            if min(part.values(), default=1.0) == 1.0:  # rounding has removed as much already
                if number == rounds:
                    if not at.exists():
                        save_small(at, model, {"rounds": rounds, "shares": dict(shares)})
                    now = f"small:{at}"
                continue
        place = at if number == rounds else at.with_name(f"{at.name}_round{number}")
        now, now_weights = _cut_once(steps, now, now_weights, part, limits, place), None
    return now


def counted_units(model: Model, kind: str, limits: Limits) -> int:
    """Number of units of a kind within the limits."""
    own = (one for one in all_sets(model) if one.kind == kind and not any(part in one.name for part in limits.protect))
    return sum(not limits.towers or tower in limits.towers for one in own for tower in towers_of(model, one))


def _cut_once(
    steps: Steps, name: str, weights: str | None, shares: Mapping[str, float], limits: Limits, at: Path
) -> str:
    table = at.with_name(f"{at.name}_errors.safetensors")
    model = steps.load(name, weights)
    has = {one.kind for one in all_sets(model)}
    if not table.is_file():
        steps.measure(
            name, weights, table, {kind: share for kind, share in shares.items() if share < 1 and kind in has}
        )
    if not at.exists():
        errors = Errors.load(table)
        kept = by_shares(model, errors, shares, limits)
        if all(bool(one.all()) for one in kept.values()):
            console.print(f"{name}: nothing is removed, since the numbers of groups are rounded", markup=False)
        made_by = {"errors": dict(errors.about), "shares": dict(shares)}
        save_small(at, steps.cut(of_base(model), kept), made_by)
        for one in all_sets(model):
            if one.name in kept:
                stay = int(kept[one.name].sum())
                console.print(f"{one.name}: {stay} of {one.count} {one.kind} kept", markup=False)
    return f"small:{at}"


def pretraining(
    steps: Steps,
    name: str,
    weights: str | None,
    keep: float,
    layers: float,
    limits: Limits,
    folder: Path,
    learn: Callable[[Model, Model, Path], None],
    rounds: int = 1,
) -> Path:
    """Prune width and depth at once by the dense model's table, then `learn`; returns the smaller model's folder.

    learn(student, teacher, folder): trains the student in place.
    """
    shares = {**dict.fromkeys(WIDTH, keep), "layers": layers}
    console.print(f"1. {keep:g} of heads and neurons, {layers:g} of layers kept: {folder / 'cut'}", markup=False)
    small = cut_by(steps, name, weights, shares, limits, folder / "cut", rounds)
    target = folder / "small"
    if not target.exists():
        console.print(f"2. distilled from {name}: {folder / 'learning'}", markup=False)
        student = steps.load(small, None)
        learn(student, steps.load(name, weights), folder / "learning")
        save_small(target, student.cpu(), {"recipe": "pretraining", "kept": shares})
    return target


def finetuning(
    steps: Steps,
    name: str,
    weights: str | None,
    keep: float,
    layers: float,
    limits: Limits,
    folder: Path,
    rounds: int = 1,
    learn: Sequence[str] = (),
    distils: bool = True,
) -> tuple[Path, dict[str, dict[str, float]]]:
    """The smaller model's folder, and numbers of the task: dense, after width, after depth.

    keep: share of heads and neurons; layers: of layers. weights: the task's, finetuned; None: finetune it first.
    rounds: of width. learn: options of the task's script in both stages. distils: whether the dense model is the
    teacher.
    """
    found = {}
    dense = folder / "dense"
    if not finished(dense):
        console.print(f"1. {name} on the task: {dense}", markup=False)
        steps.train(name, dense, ["--dense"] if weights is None else ["--evaluate", "--dense", "-pre", weights])
    whole = weights or weights_of(dense)
    found["dense"] = metrics_of(dense)
    now, now_weights, small = name, whole, folder
    stages = [("width", dict.fromkeys(WIDTH, keep), rounds), ("depth", {"layers": layers}, 1)]
    stages = [stage for stage in stages if min(stage[1].values()) < 1]
    for number, (stage, shares, times) in enumerate(stages):
        share, span = min(shares.values()), [number / len(stages), (number + 1) / len(stages)]
        also = ["--set", f"recipe.schedule.span={span}", *learn]
        run = folder / f"{stage}_distilled"
        console.print(
            f"{number + 2}. {stage}: {share:g} of {now} kept, then distilled from {name}: {run}", markup=False
        )
        small = cut_by(steps, now, now_weights, shares, limits, folder / stage, times)
        about = {"recipe": "finetuning", "stage": stage, "kept": dict(shares)}
        small = distilled(steps, small, name if distils else None, whole, run, about, also)
        found[stage] = metrics_of(run)
        now, now_weights = f"small:{small}", None
    return small, found
