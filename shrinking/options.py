"""The options of shrink.py: no heavy import stands here, so that `--help` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.overrides import add_set
from configs.schema import model_names
from console.command_line import Parser

FOLDER = Path("shrunk")
ERRORS, PLAN = "_errors.safetensors", "_plan.json"
SHARES = {"heads": "heads", "ffn": "neurons", "channels": "channels", "layers": "layers"}
"""Ending of a --keep_ option -> kind of what it keeps a share of."""

MEASURE = (
    *("model", "weights", "task", "criterion", "score", "samples", "group", "ffn_scope", "screen", "keep"),
    *("seed", "accelerator", "devices", "output"),
)
"""Options of `measure` with a value, as recipes give them."""

TARGETS = ("parameters", "flops", "latency")


def parser_of(description: str | None) -> Parser:
    """The parser of the command line."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    data.add_argument("--on_test", action="store_true", help="also if the data is what models are tested on")
    data.add_argument("--order", default="taylor", help="of neurons, into groups: taylor, magnitude or stored")
    add_mope(data)
    data.add_argument("--keep", type=float, default=0.5, help="share next to which --screen measures (default: 0.5)")
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
    cut.add_argument("--any_base", action="store_true", help="also if the plan was made for other weights")
    cut.add_argument("--repair", action="store_true", help="let what stays take over, by least squares on some data")
    cut.add_argument("--samples", type=int, default=500, help="of that data, which is as of measure (default: 500)")
    cut.add_argument("--config", help="YAML file with that data (default: as of measure)")
    cut.add_argument("--on_test", action="store_true", help="also if that data is what models are tested on")
    cut.add_argument("--seed", type=int, default=42, help="of the order of that data")
    cut.add_argument("--repeats", type=int, default=10, help="timings of each model, in turn (default: 10)")
    cut.add_argument("-o", "--output", metavar="FOLDER", help="the smaller model (default: beside the plan)")

    distil = commands.add_parser("distil", help="train a smaller model on a task, and let it learn from the whole one")
    add_model(distil)
    distil.add_argument("--teacher", required=True, metavar="MODEL", help="the whole model")
    distil.add_argument("--distil", choices=("mope", "tinyclip"), help="which losses (default: mope)")
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

    series = commands.add_parser("series", help="a table, and a smaller model for each of several shares")
    series.add_argument("-m", "--model", required=True, help="as of measure")
    series.add_argument("-s", "--sparsities", nargs="+", required=True, metavar="PERCENT", help="shares that go")
    series.add_argument("--config", help="YAML file whose data is read (default: configs/<model>/prune.yaml)")
    series.add_argument("--seed", type=int, default=42)
    series.add_argument("--accelerator", default="auto", help="cpu, gpu, mps or auto")
    series.add_argument("-o", "--output", required=True, metavar="FOLDER", help="all of it")
    add_set(series)  # options of measure, plan and cut

    export = commands.add_parser("export", help="a smaller model for other software")
    export.add_argument("folder", metavar="FOLDER", help="a smaller model")
    export.add_argument("--to", required=True, help="hf, hf-code, zeros, mask, torch or onnx")
    export.add_argument("-o", "--output", metavar="PATH", help="what is written (default: beside the folder)")
    return parser


def add_mope(parser: argparse._ActionsContainer) -> None:
    """What `mope` measures less of."""
    scopes = ("layer", "all")
    parser.add_argument("--ffn_scope", choices=scopes, default="layer", help="groups of neurons: of one layer, or all")
    parser.add_argument("--screen", type=float, default=1.0, help="share of parts to measure, by Taylor (default: 1)")


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
    losses = ("mope", "tinyclip", "none")
    parser.add_argument("--distil", choices=losses, default="mope", help="how it learns from the whole (default: mope)")
    parser.add_argument("--devices", type=int, default=1, help="processes that measure, and train on a task")
    parser.add_argument("--keep", type=float, default=0.5, help="share of heads and neurons that stays (default: 0.5)")
    parser.add_argument("--keep_layers", type=float, default=0.75, help="share of layers (default: 0.75)")
    parser.add_argument("--tower", default=tower, help=f"vision, text, fusion, or both: all (default: {tower})")
    parser.add_argument("--criterion", default="mope", help="mope, taylor, magnitude or random (default: mope)")
    parser.add_argument("--score", help="what drops: itc, recall, accuracy or loss (default: itc where it can be)")
    parser.add_argument("--samples", type=int, default=500, help="that are measured on (default: 500)")
    parser.add_argument("--group", type=int, default=64, help="neurons that go together (default: 64)")
    add_mope(parser)
    parser.add_argument("--rounds", type=int, default=1, help="of measuring and removing width (default: 1)")
    parser.add_argument("--repair", action="store_true", help="let what stays take over, by least squares")
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
