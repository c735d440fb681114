"""Make a model really smaller: without heads, neurons, channels and layers, in files that load like any other model.

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
from pathlib import Path
from typing import Any

from configs.overrides import add_set
from configs.schema import model_names
from console.command_line import Parser
from console.errors import InputError, nearest, run_command
from console.progress import console
from console.results import result_console
from console.words import counted

FOLDER = Path("shrunk")
ERRORS, PLAN = "_errors.safetensors", "_plan.json"
SHARES = {"heads": "heads", "ffn": "neurons", "channels": "channels", "layers": "layers"}
"""Ending of a --keep_ option -> kind of what it keeps a share of."""

TARGETS = ("parameters", "flops", "latency")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    measure = commands.add_parser("measure", help="a table of errors: what the model loses with each part")
    add_model(measure)
    measure.add_argument(
        "--criterion",
        default="mope",
        help="mope, taylor, influence (layers alone), magnitude or random (default: mope)",
    )
    measure.add_argument("--group", type=int, default=64, help="neurons or channels that go together (default: 64)")
    measure.add_argument("--seed", type=int, default=42)
    measure.add_argument("-o", "--output", metavar="FILE", help=f"the table (default: in {FOLDER}/)")
    data = measure.add_argument_group("criteria that look at data")
    data.add_argument("--score", help="what drops: itc, recall, accuracy or loss (default: itc where it can be)")
    data.add_argument("--samples", type=int, default=500, help="of the calibration data (default: 500)")
    data.add_argument(
        "--config",
        help="YAML file whose data is read (default: configs/<model>/prune.yaml; with --task its training data)",
    )
    data.add_argument("--order", default="taylor", help="of neurons, into groups: taylor, magnitude or stored")
    data.add_argument("--devices", type=int, default=1, help="processes that share the parts (default: 1)")
    data.add_argument("--accelerator", default="auto", help="cpu, gpu, mps or auto")
    data.add_argument("--resume", action="store_true", help="go on from what an interrupted run saved (mope)")

    plan = commands.add_parser("plan", help="which parts stay, from a table of errors, without data")
    plan.add_argument("errors", metavar="ERRORS", help="a table that `measure` wrote")
    plan.add_argument(
        "--tower", default="vision", help="vision, text, fusion, or both: all there are (default: vision)"
    )
    plan.add_argument("--keep", type=float, help="share of heads, neurons and channels that stays (default: 0.5)")
    for name, kind in SHARES.items():
        plan.add_argument(f"--keep_{name}", type=float, help=f"share of {kind} that stays, instead")
    for name, what in zip(TARGETS, ("of the whole model", "a pass", "milliseconds a pass"), strict=True):
        plan.add_argument(f"--{name}", type=float, help=f"as many as this at most, {what}, instead of shares")
    plan.add_argument("--batch_size", type=int, default=1, help="samples a pass, for --flops and --latency")
    plan.add_argument("--scope", choices=("global", "layer"), default="global", help="what is compared for a share")
    plan.add_argument("--protect", nargs="+", default=[], metavar="NAME", help="parts of names that stay whole")
    plan.add_argument("--round", type=int, default=64, help="widths are multiples of it (default: 64)")
    plan.add_argument("-o", "--output", metavar="FILE", help="the plan (default: beside the table)")

    cut = commands.add_parser("cut", help="the smaller model, in a folder; dense and small side by side")
    add_model(cut)
    cut.add_argument("--plan", required=True, metavar="FILE", help="a plan for this model")
    cut.add_argument("--repeats", type=int, default=10, help="timings of each model, in turn (default: 10)")
    cut.add_argument("-o", "--output", metavar="FOLDER", help="the smaller model (default: beside the plan)")

    distil = commands.add_parser("distil", help="train a smaller model on a task, and let it learn from the whole one")
    add_model(distil)
    distil.add_argument("--teacher", required=True, metavar="MODEL", help="the whole model")
    distil.add_argument("--teacher_weights", required=True, metavar="FILE", help="its weights for the task")
    add_run(distil)
    distil.add_argument("-o", "--output", required=True, metavar="FOLDER", help="the run; FOLDER/small is the result")

    add_recipe(
        commands.add_parser("finetuning", help="width, distil, depth, distil: of a model finetuned on a task"), "vision"
    )
    both = commands.add_parser("pretraining", help="width and depth at once, then it learns from the whole model")
    add_recipe(both, "both")
    both.add_argument("--steps", type=int, default=300, help="that it learns for (default: 300)")
    both.add_argument("--lr", type=float, default=2e-4, help="largest rate (default: 2e-4; of the paper's ports: 2e-5)")

    export = commands.add_parser("export", help="a smaller model for other software")
    export.add_argument("folder", metavar="FOLDER", help="a smaller model")
    export.add_argument("--to", required=True, help="hf, hf-code, zeros, mask, torch or onnx")
    export.add_argument("-o", "--output", metavar="PATH", help="what is written (default: beside the folder)")
    return parser.parse_args(arguments)


def add_run(parser: argparse.ArgumentParser) -> None:
    """How a model is trained that learns from another."""
    for name in ("sim", "feat", "hidden"):
        parser.add_argument(f"--{name}", type=float, help=f"weight of the loss {name} (docs/smaller-models.md)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, mps or auto")
    add_set(parser)


def add_recipe(parser: argparse.ArgumentParser, tower: str) -> None:
    """What both recipes keep, measure by, and show."""
    add_model(parser)
    parser.add_argument("--keep", type=float, default=0.5, help="share of heads and neurons that stays (default: 0.5)")
    parser.add_argument("--keep_layers", type=float, default=0.75, help="share of layers (default: 0.75)")
    parser.add_argument("--tower", default=tower, help=f"vision, text, fusion, or both: all (default: {tower})")
    parser.add_argument("--criterion", default="mope", help="mope, taylor, magnitude or random (default: mope)")
    parser.add_argument("--score", help="what drops: itc, recall, accuracy or loss (default: itc where it can be)")
    parser.add_argument("--samples", type=int, default=500, help="that are measured on (default: 500)")
    parser.add_argument("--group", type=int, default=64, help="neurons that go together (default: 64)")
    parser.add_argument("--protect", nargs="+", default=[], metavar="NAME", help="parts of names that stay whole")
    parser.add_argument("--round", type=int, default=64, help="widths are multiples of it (default: 64)")
    parser.add_argument("--repeats", type=int, default=10, help="timings of each model, in turn (default: 10)")
    add_run(parser)
    parser.add_argument("-o", "--output", metavar="FOLDER", help=f"all of it (default: in {FOLDER}/)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, with which weights."""
    names = ", ".join(model_names())
    parser.add_argument("-m", "--model", required=True, help=f"one of {names}, timm:NAME, hf:ID or small:FOLDER")
    parser.add_argument("--weights", help="a checkpoint (default: the model's own)")
    parser.add_argument("--task", help="the task whose model it is (default: the pretraining model)")
    parser.add_argument("--conv", action="store_true", help="channels, too (timm:NAME and hf:ID models)")


def main() -> None:
    """Check the command line, then do what it says."""
    args = parse_args()
    commands = (measure, plan, cut, distil, finetuning, pretraining, export)
    {command.__name__: command for command in commands}[args.command](args)


def measure(args: argparse.Namespace) -> None:
    """A table of errors."""
    if args.group < 1:
        raise InputError(f"--group must be at least 1, not {args.group}")
    from models import file_name
    from shrinking import CRITERIA, MEASURED
    from shrinking.errors import Errors
    from tasks.loading import load

    if args.criterion not in (names := (*MEASURED, *CRITERIA)):
        near = nearest(args.criterion, names)
        raise InputError(f"unknown criterion '{args.criterion}'{near}: choose one of {', '.join(names)}")
    target = Path(args.output or FOLDER / f"{file_name(args.model)}_{args.criterion}_seed{args.seed}{ERRORS}")
    about = {key: getattr(args, key) for key in ("model", "task", "conv", "criterion", "seed", "group")}
    if args.criterion in MEASURED:
        from shrinking.measuring import measured
        from tasks.loading import data_of

        table, writes = measured(lambda: load(args), data_of(args), args, about, target)
    else:
        model = load(args)
        table, writes = Errors.of(model, CRITERIA[args.criterion](model, args.seed), args.group, about), True
    if not writes:
        return
    table.save(target)
    target.with_suffix(".resume").unlink(missing_ok=True)
    found = sum(map(len, table.errors.values()))
    result_console().print(f"{target}: {counted(found, 'error')} of {counted(len(table.errors), 'set')}", markup=False)


def plan(args: argparse.Namespace) -> None:
    """What stays, from a table."""
    asked = {name: getattr(args, name) for name in TARGETS if getattr(args, name) is not None}
    shares = {kind: getattr(args, f"keep_{name}") for name, kind in SHARES.items()}
    shares = {kind: share for kind, share in shares.items() if share is not None}
    if asked and (shares or args.keep is not None or len(asked) > 1):
        raise InputError(f"--{next(iter(asked))} is a target of its own: leave out shares and other targets")
    if args.round < 1 or args.batch_size < 1:
        raise InputError("--round and --batch_size must be at least 1")
    from models.parts import all_sets
    from models.plans import Plan
    from models.small import write_plan
    from shrinking.choosing import Limits, by_shares, to_target
    from shrinking.errors import Errors
    from tasks.loading import load

    table = Errors.load(args.errors)
    for key in ("model", "task", "conv"):
        setattr(args, key, table.about[key])
    args.weights = None
    model = load(args)
    limits = Limits(() if args.tower == "both" else (args.tower,), tuple(args.protect), args.round)
    if asked:
        ((name, target),) = asked.items()
        from shrinking.showing import meter

        kept = to_target(model, table, meter(name, model, args.batch_size), target, limits)
    else:
        share = 0.5 if args.keep is None else args.keep
        all_shares = {"heads": share, "neurons": share, "channels": share} | shares
        kept = by_shares(model, table, all_shares, limits, args.scope)
    found = all_sets(model)
    whole = Plan.of(found, kept, model.plan)
    source = {key: getattr(args, key) for key in ("tower", "scope", "protect", "round")} | (
        asked or {"shares": all_shares}
    )
    stem = str(args.errors).removesuffix(ERRORS)
    target = Path(args.output or f"{stem}{PLAN}")
    write_plan(target, model, whole, {"errors": dict(table.about), **source})
    for one in found:
        if one.name in kept:
            console.print(f"{one.name}: {int(kept[one.name].sum())} of {one.count} {one.kind} stay", markup=False)
    result_console().print(str(target), markup=False)


def cut(args: argparse.Namespace) -> None:
    """The smaller model."""
    from models.parts import all_sets
    from models.plans import Plan
    from models.small import read_plan, save_small
    from models.surgery import cut as without
    from shrinking.showing import show
    from tasks.loading import load

    about = read_plan(args.plan)
    target = Path(args.output or str(args.plan).removesuffix(".json").removesuffix("_plan"))
    if target.exists():
        raise InputError(f"{target} is there already: give another folder with --output, or remove it")
    model = load(args)
    chosen = Plan.from_json(about["kept"], args.plan)
    small = without(model, chosen.kept(all_sets(model), model.plan))
    save_small(target, small, about.get("made_by"))
    show(args.model, model, small, args.repeats, args.task)
    result_console().print(f"{target}: --model small:{target}", markup=False)


def steps_of(args: argparse.Namespace) -> Any:
    """What recipes are made of, on the task of the command line, if any."""
    from shrinking.recipes import Steps
    from tasks.loading import load

    def own(name: str, weights: str | None) -> argparse.Namespace:
        return argparse.Namespace(**{**vars(args), "model": name, "weights": weights})

    def write_table(name: str, weights: str | None, file: Path) -> None:
        options = {"output": file, "config": None, "order": "taylor", "devices": 1}
        options["resume"] = file.with_suffix(".resume").is_file()
        measure(argparse.Namespace(**{**vars(own(name, weights)), **options}))

    def train(name: str, folder: Path, options: list[str]) -> None:
        words = ["--model", name, "--output_dir", str(folder), *options]
        for key in ("seed", "accelerator", "sim", "feat", "hidden"):
            if getattr(args, key, None) is not None:
                words += [f"--{key}", str(getattr(args, key))]
        for word in args.set:
            words += ["--set", word]
        importlib.import_module(args.task).main(words)

    return Steps(lambda name, weights: load(own(name, weights)), write_table, train)


def distil(args: argparse.Namespace) -> None:
    """A smaller model's training under the whole one."""
    from shrinking.recipes import taught
    from tasks.loading import task_for

    args.task = task_for(args.model, args.task)
    steps = steps_of(args)
    start = steps.load(args.model, args.weights)
    if start.plan is None:
        raise InputError(
            f"--model {args.model} is no smaller model: give small:FOLDER, or train it with its task's script"
        )
    small = taught(
        steps, args.model, args.teacher, args.teacher_weights, Path(args.output), {"teacher": args.teacher},
        [] if args.weights is None else ["-pre", args.weights],
    )  # fmt: skip
    result_console().print(f"{small}: --model small:{small}", markup=False)


def finetuning(args: argparse.Namespace) -> None:
    """The recipe of the finetuning stage."""
    from shrinking.recipes import begun, check_shares, weights_of
    from shrinking.recipes import finetuning as recipe
    from shrinking.showing import conclude
    from tasks.loading import task_for

    check_shares(args)
    args.task = task_for(args.model, args.task)
    steps = steps_of(args)
    steps.load(args.model, args.weights)  # what is wrong with it is said before a folder is there
    limits, folder = begun(args, FOLDER)
    small, found = recipe(steps, args.model, args.weights, args.keep, args.keep_layers, limits, folder)
    dense = steps.load(args.model, args.weights or weights_of(folder / "dense"))
    conclude(args, dense, steps.load(f"small:{small}", None), found, small)


def pretraining(args: argparse.Namespace) -> None:
    """The recipe of the pretraining stage."""
    from shrinking.recipes import begun, check_shares
    from shrinking.recipes import pretraining as recipe
    from shrinking.relearning import check_pairs, relearn
    from shrinking.showing import conclude
    from tasks.loading import data_of, has_gallery, zero_shot

    check_shares(args)
    if args.task:
        raise InputError("--task is for shrink.py finetuning, and pretraining is of no task: leave it out")
    args.config = None
    data, steps = data_of(args), steps_of(args)
    check_pairs(steps.load(args.model, args.weights))
    limits, folder = begun(args, FOLDER)
    small = recipe(
        steps, args.model, args.weights, args.keep, args.keep_layers, limits, folder,
        lambda student, teacher, run: relearn(student, teacher, data, args, run),
    )  # fmt: skip
    models = {"dense": steps.load(args.model, args.weights)}
    models |= {at.name: steps.load(f"small:{at}", None) for at in (folder / "cut", small)}
    found = {name: zero_shot(args, model) for name, model in models.items()} if has_gallery(args.model) else {}
    conclude(args, models["dense"], models[small.name], found, small)


def export(args: argparse.Namespace) -> None:
    """A smaller model for other software."""
    from shrinking.export import EXPORTS

    EXPORTS.check(args.to)
    folder = Path(args.folder)
    written = EXPORTS[args.to](folder, args.output)
    result_console().print(written, markup=False)


if __name__ == "__main__":
    run_command(main)
