"""Make a model really smaller: without heads, neurons, channels and layers, in files that load like any other model.

python shrink.py measure --model dino-mini --criterion magnitude
python shrink.py plan shrunk/dino-mini_magnitude_seed42_errors.safetensors --keep 0.5
python shrink.py cut --model dino-mini --plan shrunk/dino-mini_magnitude_seed42_plan.json
python image_classification.py --model small:shrunk/dino-mini_magnitude_seed42 --dense
python shrink.py export shrunk/dino-mini_magnitude_seed42 --to zeros
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema import model_names
from console.command_line import Parser
from console.errors import InputError, nearest, run_command
from console.progress import console
from console.results import result_console
from console.words import counted

if TYPE_CHECKING:
    from models.base import Model

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
    data.add_argument("--config", help="YAML file whose data is read (default: configs/<model>/prune.yaml)")
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

    export = commands.add_parser("export", help="a smaller model for other software")
    export.add_argument("folder", metavar="FOLDER", help="a smaller model")
    export.add_argument("--to", required=True, help="hf, hf-code, zeros, mask, torch or onnx")
    export.add_argument("-o", "--output", metavar="PATH", help="what is written (default: beside the folder)")
    return parser.parse_args(arguments)


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
    {"measure": measure, "plan": plan, "cut": cut, "export": export}[args.command](args)


def load(args: argparse.Namespace, weights: str | None = None) -> Model:
    """The model that is named."""
    from models import load_model, load_task_model

    changes = {"conv": True} if args.conv else {}
    if args.task:
        return load_task_model(args.model, args.task, weights=weights or args.weights, overrides=changes)
    return load_model(args.model, weights=weights or args.weights, overrides=changes)


def measure(args: argparse.Namespace) -> None:
    """A table of errors."""
    if args.group < 1:
        raise InputError(f"--group must be at least 1, not {args.group}")
    from models import file_name
    from shrinking import CRITERIA, MEASURED
    from shrinking.errors import Errors

    if args.criterion not in (names := (*MEASURED, *CRITERIA)):
        near = nearest(args.criterion, names)
        raise InputError(f"unknown criterion '{args.criterion}'{near}: choose one of {', '.join(names)}")
    target = Path(args.output or FOLDER / f"{file_name(args.model)}_{args.criterion}_seed{args.seed}{ERRORS}")
    about = {key: getattr(args, key) for key in ("model", "task", "conv", "criterion", "seed", "group")}
    if args.criterion in MEASURED:
        from shrinking.measuring import measured

        table, writes = measured(lambda: load(args), args, about, target)
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

    table = Errors.load(args.errors)
    for key in ("model", "task", "conv"):
        setattr(args, key, table.about[key])
    args.weights = None
    model = load(args)
    limits = Limits(() if args.tower == "both" else (args.tower,), tuple(args.protect), args.round)
    if asked:
        ((name, target),) = asked.items()
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


def meter(name: str, model: Model, size: int) -> Any:
    """A function from a model to its parameters, FLOPs or milliseconds on the CPU, at so many samples a pass."""
    import torch

    from evaluation.efficiency.flops import count_flops
    from evaluation.efficiency.sizes import count_parameters
    from evaluation.efficiency.speed import in_turn
    from evaluation.efficiency.table import work_of
    from models.common.checkpoint import shipped

    device = torch.device("cpu")
    _, batch, run = work_of(model, None, size, device, torch.float32)

    @torch.no_grad()
    def milliseconds(small: Model) -> float:
        return min(in_turn({"small": lambda: run(small, batch)}, 10, device)["small"])

    return {
        "parameters": lambda small: count_parameters(shipped(small)),
        "flops": lambda small: count_flops(small, lambda: run(small, batch)).total,
        "latency": milliseconds,
    }[name]


def cut(args: argparse.Namespace) -> None:
    """The smaller model."""
    from models.parts import all_sets
    from models.plans import Plan
    from models.small import read_plan, save_small
    from models.surgery import cut as without

    about = read_plan(args.plan)
    target = Path(args.output or str(args.plan).removesuffix(".json").removesuffix("_plan"))
    if target.exists():
        raise InputError(f"{target} is there already: give another folder with --output, or remove it")
    model = load(args)
    chosen = Plan.from_json(about["kept"], args.plan)
    small = without(model, chosen.kept(all_sets(model), model.plan))
    save_small(target, small, about.get("made_by"))
    show(args.model, model, small, args.repeats)
    result_console().print(f"{target}: --model small:{target}", markup=False)


def show(name: str, model: Model, small: Model, repeats: int) -> None:
    """Dense and small side by side: weights by tower, parameters, file size, FLOPs, latency at two batch sizes."""
    import torch
    from rich.table import Table

    from evaluation.efficiency.sizes import file_sizes
    from evaluation.efficiency.table import side_by_side
    from models.common.checkpoint import shipped

    both = {"dense": model, "small": small}
    table = Table(title=f"{name}, on the CPU, {counted(repeats, 'timing')} in turn")
    for column in ("", *both, ""):
        table.add_column(column, justify="right" if table.columns else "left")

    def add(what: str, counts: list[float], form: str = "{:,.0f}", ratio: str = "") -> None:
        table.add_row(what, *map(form.format, counts), ratio or f"{counts[1] / counts[0]:.2f} x")

    towers = [{layer: one.modality_of(layer) for layer in one.prunable_layers()} for one in both.values()]
    for tower in dict.fromkeys(towers[0].values()):
        weights = [one.prunable_layers() for one in both.values()]
        sizes = [
            sum(w[n].weight.numel() for n, t in own.items() if t == tower)
            for w, own in zip(weights, towers, strict=True)
        ]
        add(f"weights of {tower}", sizes)
    add("file, MB (fp32)", [file_sizes(shipped(one))["fp32"] / 1e6 for one in both.values()], "{:.2f}")
    for size in (1, 32):
        rows = side_by_side(both, size, repeats, torch.device("cpu"))
        if size == 1:
            add("parameters", [row["parameters"] for row in rows.values()])
        add(f"FLOPs, batch {size}", [row["flops"] for row in rows.values()])
        for key, ratio in (("least", "fastest"), ("median", "median")):
            times = [row["latency_ms"][key] for row in rows.values()]
            add(f"ms, batch {size} ({key})", times, "{:.2f}", f"{rows['small']['speed'][ratio]:.2f} x as fast")
    result_console().print(table)


def export(args: argparse.Namespace) -> None:
    """A smaller model for other software."""
    from shrinking.export import EXPORTS

    EXPORTS.check(args.to)
    folder = Path(args.folder)
    written = EXPORTS[args.to](folder, args.output)
    result_console().print(written, markup=False)


if __name__ == "__main__":
    run_command(main)
