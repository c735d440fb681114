"""A smaller model for each of several sparsities, from one table of errors: a step of a grid (studies/).

    python shrink.py series --model dino-mini --sparsities 25 50 --set criterion=taylor --set tower=both -o FOLDER

FOLDER/errors.safetensors   the table
FOLDER/25 ...               a smaller model for each sparsity
FOLDER/series.json          identity of the series, seconds of measuring, and sizes of the dense and smaller models
A repeated command skips finished models, and rejects a folder of another model, set or seed. Options have the names of
those of measure, plan and cut, and there are three more:
of      what the sparsity refers to: width (heads, neurons and channels, the default), layers, all of these, or a
        target: parameters, flops, latency
first   width or depth is pruned first, and the result is measured again (default: both at once)
rounds  width is pruned in this number of equal parts, each measured on the result of the one before (default: 1)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.limits import at_least
from configs.overrides import changed
from console.errors import InputError, nearest
from console.progress import console
from shrinking import MEASURED
from shrinking.checking import OF_REPAIR, check_measuring, check_plan
from shrinking.options import SHARES, TARGETS, TOWER, parser_of
from sparsity.percents import parse_percents, percent
from storage.atomic import read_json, write_json

if TYPE_CHECKING:
    from models.base import Model

TABLE, SERIES = "errors.safetensors", "series.json"
OWN = {"of": ("width", "layers", "all", *TARGETS), "first": ("width", "depth"), "rounds": range(1, 11)}
OF_SERIES = (
    "command", "model", "weights", "task", "config", "seed", "accelerator", "resume", "output", "errors", "plan",
    "kinds", "set",
    *TARGETS,
)  # fmt: skip
"""Options of measure, plan and cut that the series sets itself."""

WORK = ("devices", "repeats", "on_test", "any_base")
"""Options that do not change the smaller models."""

NEEDED = {"measure": ["--model", "m"], "plan": ["errors"], "cut": ["--model", "m", "--plan", "p"]}

Parts = list[dict[str, float]]
"""Options of `plan` for each of several removals, in order."""


def words_of(command: str, options: Mapping[str, Any]) -> list[str]:
    """The command line of those options that the command has."""
    known = vars(parser_of(None).parse_args([command, *NEEDED[command]]))
    words = []
    for key, value in options.items():
        if key not in known or value is None or value is False:
            continue
        several = isinstance(value, list | tuple)
        words += [f"--{key}", *map(str, value)] if several else [f"--{key}"] if value is True else [f"--{key}={value}"]
    return words


def check_options(options: Mapping[str, Any]) -> None:
    """InputError for an unknown option or an invalid value."""
    parser, known = parser_of(None), set(OWN)
    for command, needed in NEEDED.items():
        known |= vars(parser.parse_args([command, *needed])).keys() - set(OF_SERIES)
    for key, value in options.items():
        if key not in known:
            raise InputError(f"unknown option '{key}'{nearest(key, known)}: choose one of {', '.join(sorted(known))}")
        if key in OWN and value not in OWN[key]:
            raise InputError(f"'{key}' is one of {', '.join(map(str, OWN[key]))}, not {value}")
    given = {
        command: parser.parse_args([command, *needed, *words_of(command, options)])
        for command, needed in NEEDED.items()
    }
    check_measuring(given["measure"])
    at_least(given["cut"], 1, "repeats", "samples")
    own = {key: value for key, value in options.items() if key not in ("keep", "keep_layers")}
    for part in parts_of(options, 0.5, lambda name: 1.0):
        check_plan(parser.parse_args(["plan", *NEEDED["plan"], *words_of("plan", own | part)]))


def parts_of(options: Mapping[str, Any], share: float, whole: Callable[[str], float]) -> Parts:
    """The removals after which a share is left. whole: parameters, FLOPs, latency of the dense model.

    InputError for `first` without both width and depth, for `rounds` of anything but width, and for shares without use.
    """
    of, layers, rounds = options.get("of", "width"), options.get("keep_layers"), options.get("rounds", 1)
    if rounds > 1:
        if of != "width" or layers or "first" in options:
            raise InputError("'rounds' are of width alone: leave them out, or of, first and keep_layers")
        left = [1 - (1 - share) * number / rounds for number in range(rounds + 1)]
        return [{"keep": after / before} for before, after in pairwise(left)]
    if of in TARGETS:
        if unused := {"keep", "keep_layers"} & options.keys():
            raise InputError(f"'of: {of}' is a target: leave out {min(unused)}")
        both: dict[str, float] = {of: share * whole(of)}
    elif of in ("layers", "all") and layers is not None:
        raise InputError(f"'of: {of}' is the share of layers: leave keep_layers out")
    elif of == "layers":
        both = {"keep": options.get("keep", 1.0), "keep_layers": share}
    else:
        both = {"keep": share} | ({"keep_layers": share} if of == "all" else {"keep_layers": layers} if layers else {})
    first = options.get("first")
    if first is None:
        return [both]
    if len(both) < 2:
        raise InputError(f"'first: {first}' is an order of width and depth: give keep_layers, too, or of: all")
    parts = [{"keep": both["keep"]}, {"keep": 1.0, "keep_layers": both["keep_layers"]}]
    return parts if first == "width" else parts[::-1]


def kinds_of(model: Model, options: Mapping[str, Any]) -> list[str]:
    """The kinds of parts in the model that `plan` removes with these options."""
    from models.parts import all_sets

    usual = 0.0 if any(target in options for target in TARGETS) else options.get("keep", 0.5)
    shares = {kind: options.get(f"keep_{name}", 1.0 if kind == "layers" else usual) for name, kind in SHARES.items()}
    has = {one.kind for one in all_sets(model)}
    return [kind for kind, share in shares.items() if kind in has and share < 1]


def telling_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without explicit defaults and without WORK: they define the smaller models."""
    usual = {
        k: v
        for command, needed in NEEDED.items()
        for k, v in vars(parser_of(None).parse_args([command, *needed])).items()
    }
    return {key: value for key, value in options.items() if key not in WORK and (key in OWN or value != usual.get(key))}


def uses_data(options: Mapping[str, Any]) -> bool:
    """Whether smaller models depend on data."""
    return options.get("criterion", "mope") in MEASURED or bool(options.get("repair"))


def draws(options: Mapping[str, Any]) -> bool:
    """Whether another seed may give other models."""
    return uses_data(options) or options.get("criterion") == "random"


def series(args: argparse.Namespace, commands: Mapping[str, Callable[[argparse.Namespace], Any]]) -> None:
    """Make the missing models, and record their sizes. commands: measure, plan and cut."""
    from models import load_model

    options = changed({}, args.set)
    check_options(options)
    folder = Path(args.output)
    percents = parse_percents(args.sparsities)
    path = folder / SERIES
    found = {"seconds": {}, "shares": {}} | (read_json(path) if path.is_file() else {})
    seed = args.seed if draws(options) else None
    config = args.config if uses_data(options) else None
    asked = {"model": args.model, "config": config, "set": telling_options(options), "seed": seed}
    if (before := found.setdefault("of", asked)) != asked:
        other = next(key for key in asked if before.get(key) != asked[key])
        raise InputError(
            f"{folder} has smaller models of another {other} ({before.get(other)}, now {asked[other]}): give another "
            "folder with --output, or remove it"
        )

    def do(command: str, given: Mapping[str, Any], *needed: str) -> None:
        values = options | {"seed": args.seed, "accelerator": args.accelerator} | given
        if command == "cut" and not options.get("repair"):
            values = {key: value for key, value in values.items() if key not in OF_REPAIR}
        words = words_of(command, values)
        commands[command](parser_of(None).parse_args([command, *needed, *words]))

    def table_of(name: str, file: Path, part: Mapping[str, float]) -> Path:
        if not file.is_file():
            console.print(f"errors of {name}: {file}", markup=False)
            began, resume = time.monotonic(), file.with_suffix(".resume").is_file()
            # Kinds that the plan does not remove need no measurement.
            parts = {"kinds": kinds_of(load_model(name), options | part), "tower": options.get("tower", TOWER)}
            do("measure", parts | {"output": file, "resume": resume, "config": args.config}, "--model", name)
            taken = found["seconds"].get(file.name, 0) + time.monotonic() - began
            found["seconds"][file.name] = round(taken, 3)
            write_json(path, found)
        return file

    def without(name: str, table: Path, part: Mapping[str, float], at: Path) -> str:
        plan = at.with_name(f"{at.name}_plan.json")
        if not at.exists():
            console.print(f"cutting {name}: {at}", markup=False)
            own = {key: value for key, value in options.items() if key not in ("keep", "keep_layers")}
            words = words_of("plan", own | dict(part) | {"output": plan})
            commands["plan"](parser_of(None).parse_args(["plan", str(table), *words]))
            also = {"output": at, "repeats": 1, "config": args.config}
            do("cut", also, "--model", name, "--plan", str(plan))
        return f"small:{at}"

    for gone in percents:
        label = percent(gone / 100)
        at = folder / label
        if at.exists() and label in found["shares"]:
            continue
        first, table = args.model, folder / TABLE
        parts = parts_of(options, 1 - gone / 100, whole_of(args.model))
        for number, part in enumerate(parts, 1):
            between = folder / f"{label}_part{number}"
            first = without(first, table_of(first, table, part), part, at if number == len(parts) else between)
            table = folder / f"{between.name}_{TABLE}"
        found["shares"][label] = compared(args.model, first, int(options.get("repeats", 10)))
        write_json(path, found)


def whole_of(name: str) -> Callable[[str], float]:
    """Target -> its value for the dense model."""
    from models import load_model
    from shrinking.showing import meter

    def whole(target: str) -> float:
        model = load_model(name)
        return meter(target, model, 1)(model)

    return whole


def compared(dense: str, small: str, repeats: int) -> dict[str, Any]:
    """Print the dense and the smaller model side by side; returns the numbers for a result, with peak memory."""
    from models import load_model
    from pruners.outputs import peak_memory
    from shrinking.showing import show

    found = show(dense, load_model(dense), load_model(small), repeats)
    return found | {"peak_memory_gb": round(peak_memory() / 1e9, 3)}
