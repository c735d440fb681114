"""Structured pruning: remove heads, neurons, channels and layers, and write a smaller model that loads like any other.

By hand, in steps, or both in one command (a recipe, with distillation):
python shrink.py measure --model dino-mini --criterion magnitude
python shrink.py plan shrunk/dino-mini_magnitude_seed42_errors.safetensors --keep 0.5
python shrink.py cut --model dino-mini --plan shrunk/dino-mini_magnitude_seed42_plan.json
python image_classification.py --model small:shrunk/dino-mini_magnitude_seed42 --dense
python shrink.py export shrunk/dino-mini_magnitude_seed42 --to zeros
python shrink.py finetuning --model dino-mini --keep 0.5
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from console.errors import InputError, run_command
from console.progress import console
from console.results import result_console
from console.words import counted
from shrinking.options import ERRORS, FOLDER, PLAN, parser_of


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    return parser_of(__doc__).parse_args(arguments)


def main() -> None:
    """Run the subcommand."""
    args = parse_args()
    commands = (measure, plan, cut, show, distil, finetuning, pretraining, series, export)
    {command.__name__: command for command in commands}[args.command](args)


def measure(args: argparse.Namespace) -> None:
    """Write a table of errors."""
    from models import file_name
    from models.small import base_of
    from shrinking import CRITERIA, MEASURED
    from shrinking.checking import check_measuring, tell_what_stays
    from shrinking.errors import Errors, restricted
    from tasks.loading import load

    check_measuring(args)
    target = Path(args.output or FOLDER / f"{file_name(args.model)}_{args.criterion}_seed{args.seed}{ERRORS}")
    if target.suffix != ".safetensors":
        raise InputError(f"--output {target} is a table's file: end its name with .safetensors")
    about = {
        key: getattr(args, key) for key in ("model", "task", "conv", "criterion", "seed", "group", "kinds", "tower")
    }
    if args.criterion in MEASURED:
        from shrinking.measuring import measured
        from tasks.loading import data_of

        table, writes = measured(lambda: load(args), data_of(args), args, about, target)
    else:
        model = load(args)
        tell_what_stays(model)
        about |= {"base_sha256": base_of(model)}
        values = restricted(model, CRITERIA[args.criterion](model, args.seed), args.kinds, args.tower)
        table, writes = Errors.of(model, values, args.group, about), True
    if not table.errors:
        raise InputError(f"{args.criterion} has no errors of these parts: choose other --kinds, --tower or --score")
    if not writes:
        return
    table.save(target)
    target.with_suffix(".resume").unlink(missing_ok=True)
    found = sum(map(len, table.errors.values()))
    result_console().print(f"{target}: {counted(found, 'error')} of {counted(len(table.errors), 'set')}", markup=False)


def plan(args: argparse.Namespace) -> None:
    """Make a plan from a table of errors."""
    from models.parts import all_sets
    from models.plans import Plan
    from models.small import of_base, write_plan
    from shrinking.checking import check_plan
    from shrinking.choosing import Limits, by_shares, to_target
    from shrinking.errors import Errors
    from tasks.loading import load

    asked, shares = check_plan(args)
    table = Errors.load(args.errors)
    for key in ("model", "task", "conv"):
        setattr(args, key, table.about[key])
    args.weights = None
    model = of_base(load(args), table.about.get("base_sha256"))
    limits = Limits(() if args.tower == "both" else (args.tower,), tuple(args.protect), args.round)
    found = all_sets(model)
    if asked:
        ((name, target),) = asked.items()
        from shrinking.showing import meter

        kept = to_target(model, table, meter(name, model, args.batch_size), target, limits)
    else:
        share = 0.5 if args.keep is None else args.keep
        all_shares = {"heads": share, "neurons": share, "channels": share} | shares
        kept = by_shares(model, table, all_shares, limits, args.scope)
        measured = {one.kind for one in found if one.name in table.errors}
        if lacking := [kind for kind in shares if kind not in measured]:
            raise InputError(f"{args.errors} has no errors of {lacking[0]}: leave out their share, or measure them")
    if all(bool(one.all()) for one in kept.values()):
        raise InputError("nothing would be removed, since the numbers of groups are rounded: keep less")
    whole = Plan.of(found, kept, model.plan)
    source = {key: getattr(args, key) for key in ("tower", "scope", "protect", "round")} | (
        asked or {"shares": all_shares}
    )
    stem = str(args.errors).removesuffix(ERRORS)
    target = Path(args.output or f"{stem}{PLAN}")
    write_plan(target, model, whole, {"errors": dict(table.about), **source})
    for one in found:
        if one.name in kept:
            console.print(f"{one.name}: {int(kept[one.name].sum())} of {one.count} {one.kind} kept", markup=False)
    result_console().print(str(target), markup=False)


def cut(args: argparse.Namespace) -> None:
    """Write the smaller model of a plan."""
    from models.parts import all_sets
    from models.plans import Plan
    from models.small import check_base, of_base, read_plan, save_small
    from shrinking.checking import check_cut
    from shrinking.showing import show
    from tasks.loading import load

    check_cut(args)
    about = read_plan(args.plan)
    target = Path(args.output or str(args.plan).removesuffix(".json").removesuffix("_plan"))
    if target.exists():
        raise InputError(f"{target} exists already: give another folder with --output, or remove it")
    model = load(args)
    kept = Plan.from_json(about["kept"], args.plan).kept(all_sets(model), model.plan)
    if not args.any_base:
        check_base(model, about, args.plan)
    if not kept:
        raise InputError(f"{args.plan} removes nothing more from {args.model}: give the model that it was made for")
    made_by, small = about.get("made_by") or {}, cutter(args)(of_base(model), kept)
    save_small(target, small, made_by | ({"repair": args.samples} if args.repair else {}))
    show(args.model, model, small, args.repeats, args.task)
    result_console().print(f"{target}: --model small:{target}", markup=False)


def cutter(args: argparse.Namespace) -> Any:
    """The function that cuts a model to the kept units, with --repair after refitting."""
    from models.surgery import cut as without
    from shrinking.repair import cut_on_data
    from tasks.loading import data_of

    if not getattr(args, "repair", False):
        return without
    source = argparse.Namespace(**{"config": None, **vars(args)})  # recipes have no --config
    return lambda model, kept: cut_on_data(model, kept, data_of(source), args.samples, args.seed)


def option(key: str, value: Any) -> list[str]:
    """An option as words of a command line; none for None."""
    return [] if value is None else [f"--{key}", *map(str, value if isinstance(value, list) else [value])]


def alone(script: str, words: list[str]) -> None:
    """Run a command in a process of its own, since a process can start its device processes only once.

    If it fails, exit with its status.
    """
    status = subprocess.run([sys.executable, str(Path(__file__).parent / script), *words]).returncode
    if status:
        raise SystemExit(status)


def steps_of(args: argparse.Namespace) -> Any:
    """The steps of recipes, for the task of the command line, if any."""
    from shrinking.recipes import Steps
    from shrinking.series import words_of
    from tasks.loading import load

    def own(name: str, weights: str | None) -> argparse.Namespace:
        return argparse.Namespace(**{**vars(args), "model": name, "weights": weights})

    devices = getattr(args, "devices", 1)

    def write_table(name: str, weights: str | None, file: Path, shares: Mapping[str, float]) -> None:
        options = {"output": file, "kinds": list(shares), "config": None, "order": "taylor", "devices": devices}
        if args.rounds > 1:  # each round has a cut of its own, near which --screen measures
            options["keep"] = min((share for kind, share in shares.items() if kind != "layers"), default=args.keep)
        options["resume"] = args.criterion == "mope" and file.with_suffix(".resume").is_file()
        options = {**vars(own(name, weights)), **options}
        if devices == 1:
            measure(argparse.Namespace(**options))
        else:
            given = {key: value for key, value in options.items() if key not in ("command", "set")}
            alone("shrink.py", ["measure", *words_of("measure", given), *(f"--set={word}" for word in args.set)])

    def train(name: str, folder: Path, options: list[str]) -> None:
        words = ["--model", name, "--output_dir", str(folder), *options]
        for key in ("seed", "accelerator"):
            words += option(key, getattr(args, key))
        if "--teacher" in options:
            for key in ("distil", "sim", "feat", "hidden"):
                words += option(key, getattr(args, key, None))
        for word in args.set:
            words += ["--set", word]
        if devices == 1:
            importlib.import_module(args.task).main(words)
        else:
            alone(f"{args.task}.py", [*words, "--devices", str(devices)])

    return Steps(lambda name, weights: load(own(name, weights)), write_table, train, cutter(args))


def distil(args: argparse.Namespace) -> None:
    """Finetune a smaller model with the dense one as its teacher."""
    from shrinking.recipes import distilled, refuse_other
    from tasks.loading import task_for

    args.task = task_for(args.model, args.task)
    steps = steps_of(args)
    start = steps.load(args.model, args.weights)
    if start.plan is None:
        raise InputError(f"--model {args.model} is not a smaller model: give small:FOLDER, or use its task's script")
    run = Path(args.output)
    refuse_other(args, run, save=False)
    small = distilled(
        steps, args.model, args.teacher, args.teacher_weights, run, {"teacher": args.teacher},
        [] if args.weights is None else ["-pre", args.weights],
    )  # fmt: skip
    refuse_other(args, run)  # saved now: a run that fails leaves no settings to be refused by
    result_console().print(f"{small}: --model small:{small}", markup=False)


def show(args: argparse.Namespace) -> None:
    """Draw tables of errors as a page."""
    from models.plans import Plan
    from models.small import read_plan
    from shrinking.errors import Errors
    from shrinking.heat_maps import write_page
    from tasks.loading import load

    tables = {Path(file).name: Errors.load(file) for file in args.errors}
    if len(tables) < len(args.errors):
        raise InputError("two tables have the same file name: copy one to another name")
    about = next(iter(tables.values())).about
    model = load(argparse.Namespace(**{key: about[key] for key in ("model", "task", "conv")}, weights=None))
    planned = read_plan(args.plan) if args.plan else {"kept": {}}
    if None not in (bases := (planned.get("base_sha256"), about.get("base_sha256"))) and bases[0] != bases[1]:
        raise InputError(f"{args.plan} was made for other weights than {args.errors[0]}: give a plan of this table")
    plan = Plan.from_json(planned["kept"], args.plan) if args.plan else None
    target = Path(args.output or Path(args.errors[0]).with_suffix(".html"))
    write_page(model, tables, plan, target)
    result_console().print(str(target), markup=False)


def finetuning(args: argparse.Namespace) -> None:
    """Run the recipe for a finetuned model."""
    from shrinking.checking import check_parts
    from shrinking.recipes import check_shares, start_recipe, weights_of
    from shrinking.recipes import finetuning as recipe
    from shrinking.showing import conclude
    from tasks.loading import of_task, task_for

    check_shares(args)
    args.task = task_for(args.model, args.task)
    steps = steps_of(args)
    of_task(args)  # checks the configuration before a folder is created
    check_parts(steps.load(args.model, args.weights), args)
    limits, folder = start_recipe(args, FOLDER)
    learn = ["--only", args.tower] if args.task == "retrieval" and args.tower in ("vision", "text") else []
    small, found = recipe(
        steps, args.model, args.weights, args.keep, args.keep_layers, limits, folder, args.rounds, learn,
        args.distil != "none",
    )  # fmt: skip
    dense = steps.load(args.model, args.weights or weights_of(folder / "dense"))
    conclude(args, dense, steps.load(f"small:{small}", None), found, small)


def pretraining(args: argparse.Namespace) -> None:
    """Run the recipe for a pretrained model."""
    from shrinking.checking import check_parts
    from shrinking.recipes import check_shares, start_recipe
    from shrinking.recipes import pretraining as recipe
    from shrinking.relearning import check_pairs, relearn
    from shrinking.showing import conclude
    from tasks.loading import data_of, gallery_config, has_gallery, zero_shot

    check_shares(args)
    if args.task:
        raise InputError("--task is for shrink.py finetuning, not for pretraining: leave it out")
    args.config = None
    if has_gallery(args.model):
        gallery_config(args)  # checked before anything is trained
    elif args.set:
        raise InputError(f"--set is for the retrieval data of the last test, and {args.model} has none: leave it out")
    tested = argparse.Namespace(**vars(args))
    args.set = []  # --set is for the final test, not for the calibration data
    data, steps = data_of(args), steps_of(args)
    check_pairs(dense := steps.load(args.model, args.weights))
    check_parts(dense, args)
    limits, folder = start_recipe(tested, FOLDER)
    small = recipe(
        steps, args.model, args.weights, args.keep, args.keep_layers, limits, folder,
        lambda student, teacher, run: relearn(student, teacher, data, args, run), args.rounds,
    )  # fmt: skip
    models = {"dense": steps.load(args.model, args.weights)}
    models |= {at.name: steps.load(f"small:{at}", None) for at in (folder / "cut", small)}
    found = {name: zero_shot(tested, model) for name, model in models.items()} if has_gallery(args.model) else {}
    conclude(args, models["dense"], models[small.name], found, small)


def series(args: argparse.Namespace) -> None:
    """Write one table, and a smaller model for each of several sparsities."""
    from shrinking.series import series as of_shares

    of_shares(args, {"measure": measure, "plan": plan, "cut": cut})


def export(args: argparse.Namespace) -> None:
    """Write a smaller model for other software."""
    from shrinking.export import EXPORTS

    EXPORTS.check(args.to)
    folder = Path(args.folder)
    written = EXPORTS[args.to](folder, args.output)
    result_console().print(written, markup=False)


if __name__ == "__main__":
    run_command(main)
