"""The options of shrink.py, without heavy imports, so that `--help` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.overrides import add_set
from configs.schema import model_names
from console.command_line import Parser

FOLDER = Path("shrunk")
ERRORS, PLAN = "_errors.safetensors", "_plan.json"
SHARES = {"heads": "heads", "ffn": "neurons", "channels": "channels", "layers": "layers"}
"""Suffix of a --keep_ option -> kind of parts."""

TARGETS = ("parameters", "flops", "latency")
TOWER = "vision"
"""The default tower of `plan`."""

TOWERS = "vision, text, fusion, or both for all towers"


def parser_of(description: str | None) -> Parser:
    """The parser of the command line, with all subcommands."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    measure = commands.add_parser("measure", help="measure the importance of each part (head, group of neurons, layer)")
    add_model(measure)
    measure.add_argument(
        "--criterion", default="mope", help="mope, taylor, influence (layers only), magnitude or random (default: mope)"
    )
    measure.add_argument(
        "--kinds", nargs="+", metavar="KIND", help=f"kinds of parts, of {', '.join(SHARES.values())} (default: all)"
    )
    measure.add_argument("--tower", default="both", help=f"{TOWERS} (default: both)")
    measure.add_argument("--seed", type=int, default=42, help="seed of the samples and of random scores (default: 42)")
    measure.add_argument("-o", "--output", metavar="FILE", help=f"file of the table (default: in {FOLDER}/)")
    data = measure.add_argument_group("criteria that use data")
    add_measuring(data)
    data.add_argument(
        "--config",
        help="YAML file that names the data (default: configs/<model>/prune.yaml; with --task its training data)",
    )
    add_set(data)
    data.add_argument("--on_test", action="store_true", help="allow data of a test split")
    data.add_argument("--order", default="taylor", help="order of neurons before grouping: taylor, magnitude or stored")
    data.add_argument(
        "--keep",
        type=float,
        default=0.5,
        help="share that will be kept; --screen measures near that cut (default: 0.5)",
    )
    data.add_argument("--devices", type=int, default=1, help="processes among which the parts are divided (default: 1)")
    data.add_argument("--accelerator", default="auto", help="cpu, gpu, mps or auto")
    data.add_argument("--resume", action="store_true", help="resume an interrupted run (mope)")

    plan = commands.add_parser("plan", help="choose the parts to keep from a table of errors, without data")
    plan.add_argument("errors", metavar="ERRORS", help="table written by `measure`")
    plan.add_argument("--tower", default=TOWER, help=f"{TOWERS} (default: {TOWER})")
    plan.add_argument("--keep", type=float, help="share of heads, neurons and channels to keep (default: 0.5)")
    for name, kind in SHARES.items():
        plan.add_argument(f"--keep_{name}", type=float, help=f"share of {kind} to keep, overriding --keep")
    for name, what in zip(TARGETS, ("parameters", "FLOPs per pass", "milliseconds per pass"), strict=True):
        plan.add_argument(f"--{name}", type=float, help=f"upper bound on {what}, instead of shares")
    plan.add_argument("--batch_size", type=int, default=1, help="samples a pass, for --flops and --latency")
    plan.add_argument(
        "--scope", choices=("global", "layer"), default="global", help="compare groups within a tower or a layer"
    )
    plan.add_argument(
        "--protect", nargs="+", default=[], metavar="NAME", help="substrings of names that are never pruned"
    )
    plan.add_argument("--round", type=int, default=64, help="round widths to multiples of this (default: 64)")
    plan.add_argument("-o", "--output", metavar="FILE", help="file of the plan (default: next to the table)")

    cut = commands.add_parser("cut", help="write the smaller model to a folder, and compare it with the dense one")
    add_model(cut)
    cut.add_argument("--plan", required=True, metavar="FILE", help="a plan for this model")
    cut.add_argument("--any_base", action="store_true", help="allow a plan that was made for other weights")
    cut.add_argument("--repair", action="store_true", help="refit the kept parts by least squares on some data")
    cut.add_argument("--samples", type=int, default=500, help="samples for --repair (default: 500)")
    cut.add_argument("--config", help="YAML file that names the data for --repair (default: as for measure)")
    cut.add_argument("--on_test", action="store_true", help="allow data of a test split")
    cut.add_argument("--seed", type=int, default=42, help="seed of the order of the data")
    cut.add_argument("--repeats", type=int, default=10, help="timings per model, alternating (default: 10)")
    cut.add_argument("-o", "--output", metavar="FOLDER", help="folder of the smaller model (default: next to the plan)")

    show = commands.add_parser("show", help="draw a table of errors as a page, and compare it with others")
    show.add_argument("errors", nargs="+", metavar="ERRORS", help="tables written by `measure`, of one model")
    show.add_argument("--plan", metavar="FILE", help="cross out what this plan removes")
    show.add_argument("-o", "--output", metavar="FILE", help="page to write (default: next to the first table)")

    distil = commands.add_parser("distil", help="finetune a smaller model on a task, distilling the dense one")
    add_model(distil)
    distil.add_argument("--teacher", required=True, metavar="MODEL", help="the dense model")
    distil.add_argument("--distil", choices=("mope", "tinyclip"), help="distillation losses (default: mope)")
    distil.add_argument("--teacher_weights", required=True, metavar="FILE", help="the teacher's finetuned weights")
    add_run(distil)
    distil.add_argument(
        "-o", "--output", required=True, metavar="FOLDER", help="folder of the run; the result is FOLDER/small"
    )

    add_recipe(
        commands.add_parser(
            "finetuning", help="recipe for a finetuned model: prune width, distil, prune depth, distil"
        ),
        "vision",
    )
    both = commands.add_parser("pretraining", help="recipe for a pretrained model: prune width and depth, then distil")
    add_recipe(both, "both")
    both.add_argument("--steps", type=int, default=300, help="training steps (default: 300)")
    both.add_argument(
        "--lr", type=float, default=2e-4, help="peak learning rate (default: 2e-4; for full-size models: 2e-5)"
    )

    series = commands.add_parser(
        "series", help="write one table of errors, and a smaller model for each of several sparsities"
    )
    series.add_argument("-m", "--model", required=True, help="as in measure")
    series.add_argument(
        "-s", "--sparsities", nargs="+", required=True, metavar="PERCENT", help="shares to remove, in percent"
    )
    series.add_argument("--config", help="YAML file that names the data (default: configs/<model>/prune.yaml)")
    series.add_argument("--seed", type=int, default=42, help="seed of the samples and of random scores (default: 42)")
    series.add_argument("--accelerator", default="auto", help="cpu, gpu, mps or auto")
    series.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder for all results")
    add_set(series)  # options of measure, plan and cut

    export = commands.add_parser("export", help="write a smaller model for other software")
    export.add_argument("folder", metavar="FOLDER", help="folder of a smaller model")
    export.add_argument("--to", required=True, help="hf, hf-code, zeros, mask, torch or onnx")
    export.add_argument("-o", "--output", metavar="PATH", help="file or folder to write (default: next to FOLDER)")
    return parser


def add_measuring(parser: argparse._ActionsContainer) -> None:
    """Options of measuring that recipes also have."""
    parser.add_argument(
        "--score", help="score whose drop is measured: itc, recall, accuracy or loss (default: itc, else loss)"
    )
    parser.add_argument("--samples", type=int, default=500, help="calibration samples to measure on (default: 500)")
    parser.add_argument(
        "--group", type=int, default=64,
        help="neurons or channels that are removed together (default: 64, fewer in layers of less than 256)",
    )  # fmt: skip
    parser.add_argument(
        "--ffn_scope", choices=("layer", "all"), default="layer",
        help="mope: remove a group of neurons in one layer, or the groups of equal rank in all layers at once",
    )  # fmt: skip
    parser.add_argument(
        "--screen", type=float, default=1.0,
        help="mope: share of parts to measure, those near the cut by Taylor scores (default: 1)",
    )  # fmt: skip


def add_run(parser: argparse.ArgumentParser) -> None:
    """Options of distillation."""
    for name, what in (("sim", "similarities"), ("feat", "features"), ("hidden", "hidden states")):
        parser.add_argument(f"--{name}", type=float, help=f"weight of the loss on {what} (default: that of --distil)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the samples and of training (default: 42)")
    parser.add_argument("--accelerator", default="auto", help="cpu, gpu, mps or auto")
    add_set(parser)


def add_recipe(parser: argparse.ArgumentParser, tower: str) -> None:
    """Options of both recipes."""
    add_model(parser)
    losses = ("mope", "tinyclip", "none")
    parser.add_argument("--distil", choices=losses, default="mope", help="distillation losses (default: mope)")
    parser.add_argument("--devices", type=int, default=1, help="processes that measure and train")
    parser.add_argument("--keep", type=float, default=0.5, help="share of heads and neurons to keep (default: 0.5)")
    parser.add_argument("--keep_layers", type=float, default=0.75, help="share of layers to keep (default: 0.75)")
    parser.add_argument("--tower", default=tower, help=f"{TOWERS} (default: {tower})")
    parser.add_argument("--criterion", default="mope", help="mope, taylor, magnitude or random (default: mope)")
    add_measuring(parser)
    parser.add_argument("--rounds", type=int, default=1, help="rounds of measuring and pruning width (default: 1)")
    parser.add_argument("--repair", action="store_true", help="refit the kept parts by least squares")
    parser.add_argument(
        "--protect", nargs="+", default=[], metavar="NAME", help="substrings of names that are never pruned"
    )
    parser.add_argument("--round", type=int, default=64, help="round widths to multiples of this (default: 64)")
    parser.add_argument("--repeats", type=int, default=10, help="timings per model, alternating (default: 10)")
    add_run(parser)
    parser.add_argument("-o", "--output", metavar="FOLDER", help=f"folder for all results (default: in {FOLDER}/)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Options that name the model and its weights."""
    names = ", ".join(model_names())
    parser.add_argument("-m", "--model", required=True, help=f"one of {names}, timm:NAME, hf:ID or small:FOLDER")
    parser.add_argument("--weights", help="checkpoint (default: the model's own)")
    parser.add_argument("--task", help="use the model of this task (default: the pretraining model)")
    parser.add_argument(
        "--conv", action="store_true", help="also remove channels of convolutions (timm:NAME and hf:ID models)"
    )
