"""The options that all finetuning scripts share, with the names of the published ones."""

from __future__ import annotations

import argparse
from typing import Any

from configs.options import add_options
from configs.overrides import add_set, read_settings
from configs.precisions import PRECISIONS, known_precision
from configs.schema import models_with, task_file
from console.command_line import Parser
from sparsity.progressive_config import ProgressiveConfig


def finetuning_parser(description: str, task: str) -> argparse.ArgumentParser:
    """A parser with the shared options; the script adds its own."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.elsewhere = {"--prompt": "visual prompts are for python image_classification.py"}
    what = parser.add_argument_group("what")
    what.add_argument("-m", "--model", required=True, help=f"one of {', '.join(models_with(task))}")
    what.add_argument("--config", help=f"YAML file (default: configs/<model>/{task}.yaml)")
    add_set(what)
    what.add_argument("--mask", help="mask of the pretraining model; pruned weights stay zero")
    what.add_argument("--dense", action="store_true", help="train all weights, and ignore --mask")
    what.add_argument(
        "-pre",
        "--pretraining_weights",
        help="checkpoint to start from (default: the model's own); with --evaluate, the checkpoint to evaluate, such "
        "as a run's best or last weights",
        dest="weights",
    )
    what.add_argument("--evaluate", action="store_true", help="evaluate the weights of -pre, without training")
    what.add_argument("--split", choices=("test", "val"), help="split for --evaluate (default: test)")
    add_options(parser.add_argument_group("prune while training"), ProgressiveConfig)
    learn = parser.add_argument_group("learn from a teacher (retrieval, classification)")
    learn.add_argument("--teacher", metavar="MODEL", help="dense model whose outputs and hidden states are distilled")
    learn.add_argument(
        "--teacher_weights", metavar="FILE", help="the teacher's finetuned weights, such as a run's best ones"
    )
    learn.add_argument("--distil", choices=("mope", "tinyclip"), help="distillation losses (default: mope)")
    learn.add_argument("--only", metavar="TOWER", help="train one tower, vision or text, and freeze the other")
    learn.add_argument("--sim", type=float, help="weight of the loss on similarities, or on classes (default: 1)")
    learn.add_argument("--feat", type=float, help="weight of the loss on features (default: 1000)")
    learn.add_argument("--hidden", type=float, help="weight of the loss on hidden states (default: 1)")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--output_dir", help=f"folder of the run (default: runs/{task}/<model>_<mask, method or dense>_seed<n>)"
    )
    run.add_argument("--snapshot", help="resume from this snapshot of the same run, if the output folder has none")
    run.add_argument(
        "--snapshot_seconds",
        type=float,
        default=120.0,
        help="seconds between snapshots, besides one every epoch (default: 120)",
    )
    run.add_argument("--seed", type=int, help="seed of data order, augmentation and dropout (default: 42)")
    run.add_argument("--accelerator", default="auto", help="cpu, gpu, mps or auto")
    run.add_argument("--devices", type=int, default=1, help="processes on this machine, one per device")
    run.add_argument("--num_nodes", type=int, default=1, help="machines")
    run.add_argument(
        "--precision", type=known_precision, help=f"{', '.join(PRECISIONS)} (default: the configuration's)"
    )
    run.add_argument("--compile", action="store_true", help="compile the model's blocks (torch.compile)")
    run.add_argument(
        "--num_workers", type=int, help="data loader processes per device (default: with a GPU 8 at most, else none)"
    )
    run.add_argument(
        "--debug", action="store_true", help="two training steps and a small evaluation, in <output_dir>_debug"
    )
    run.add_argument(
        "--incremental",
        action="store_true",
        help="start in a new numbered output folder instead of resuming an earlier run",
    )
    run.add_argument("--no_samples", action="store_true", help="do not draw samples.png")
    log = parser.add_argument_group("logging to Weights & Biases")
    log.add_argument("-wdb", "--wandb", action="store_true", help="log losses, metrics and results online")
    log.add_argument("--wdb_offline", action="store_true", help="log to the output folder, without a network")
    log.add_argument("-exp", "--experiment_name", help="name of the run (default: the output folder's name)")
    return parser


def task_settings(args: argparse.Namespace, task: str) -> tuple[dict[str, Any], str]:
    """The configuration that a command line selects, as a mapping, and its name for messages."""
    return read_settings(args.config or task_file(args.model, task), args.set)
