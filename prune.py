"""Prune a pretrained vision-language model once, with no knowledge of the task: a mask for every sparsity.

python prune.py --model xvlm-mini --pruner multiflow
python prune.py --from_scores pruned_weights/multiflow/xvlm-mini_multiflow_seed42_scores.safetensors -s 50
"""

from __future__ import annotations

import argparse

from configs.overrides import add_set, read_settings
from configs.schema import model_names, task_file
from console.command_line import Parser
from console.errors import InputError, run_command
from pruners import PRUNERS
from sparsity import ALLOCATIONS
from sparsity.percents import parse_percents
from training.precisions import PRECISIONS, known_precision


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is left out comes from configs/<model>/prune.yaml."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what")
    what.add_argument("-m", "--model", help=f"one of {', '.join(model_names())}, timm:NAME or hf:ID")
    what.add_argument("-p", "--pruner", help=f"one of {', '.join(PRUNERS)} (default: multiflow)")
    what.add_argument("-s", "--sparsities", nargs="+", help="percent of prunable weights to go (default: 63 75 90)")
    what.add_argument(
        "--allocation",
        help=f"how layers share the loss, instead of the method's own: {', '.join(ALLOCATIONS)}, or a pattern as 2:4",
    )
    what.add_argument("--config", help="YAML file (default: configs/<model>/prune.yaml); the command line goes first")
    add_set(what)
    what.add_argument(
        "--weights", help="checkpoint to prune (default: the model's own, see configs/<model>/model.yaml)"
    )
    what.add_argument(
        "--from_scores", metavar="FILE", help="cut new masks from saved scores: no data, no model, seconds"
    )
    data = parser.add_argument_group("calibration")
    data.add_argument(
        "--seed", type=int, help="which samples calibrate, their augmentation, and ties of chance (default: 42)"
    )
    data.add_argument("--num_batches", type=int, help="steps through the data; a round's, for methods with rounds")
    data.add_argument("--batch_size", type=int, help="samples a batch and side")
    data.add_argument("--num_workers", type=int, help="loader processes; they do not change the result")
    data.add_argument("--max_missing", type=float, help="share of calibration images that may be missing or broken")
    method = parser.add_argument_group("hyperparameters (methods without them say so)")
    method.add_argument(
        "-e", "--epochs", type=int, help="rounds of pruning (itersnip, chita++; more than 1 makes chita chita++)"
    )
    method.add_argument("--schedule", help="how the sparsity grows over the rounds: exp, linear or const")
    method.add_argument("--lambda_", type=float, help="ridge penalty (chita, chita++)")
    method.add_argument(
        "--scratch_dir", help="where gradients lie meanwhile (chita, chita++; default: the system's temporary folder)"
    )
    for part, what_it_is in (("reached", "reaches the output"), ("emitted", "the input emits")):
        method.add_argument(
            f"--{part}",
            action=argparse.BooleanOptionalAction,
            help=f"let the signal that {what_it_is} be part of the score (multiflow; default: yes)",
        )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--output_dir",
        help="masks go to <output_dir>/<pruner>/ (default: pruned_weights; with --from_scores, where the scores are)",
    )
    run.add_argument("--resume", action="store_true", help="go on from the statistics an interrupted run saved")
    run.add_argument("--save_every", type=float, help="seconds between two saves of the statistics (default: 60)")
    run.add_argument(
        "--save_scores", action=argparse.BooleanOptionalAction, help="write the scores file (default: yes)"
    )
    run.add_argument("--accelerator", help="cpu, gpu, mps or auto (default: auto)")
    run.add_argument("--devices", type=int, help="devices on this machine that share the calibration (default: 1)")
    run.add_argument("--num_nodes", type=int, help="machines (default: 1)")
    run.add_argument(
        "--precision",
        type=known_precision,
        help=f"of the calibration's forward passes: {', '.join(PRECISIONS)} (default: 32-true)",
    )
    return parser.parse_args(arguments)


SWITCHES = ("reached", "emitted")
"""Options whose `no` is a wish of its own."""

WITH_SCORES = ("from_scores", "sparsities", "allocation", "output_dir")
"""Options that cutting saved scores looks at."""


def main() -> None:
    """Check everything cheap, calibrate once, cut and save the masks, show what came out."""
    args = vars(parse_args())
    if args["pruner"]:
        PRUNERS.check(args["pruner"])
    if args["sparsities"]:
        parse_percents(args["sparsities"])
    if args["from_scores"]:
        given = [name for name in args if args[name] or (name in SWITCHES and args[name] is not None)]
        idle = [name for name in given if name not in WITH_SCORES]
        if idle:
            raise InputError(
                f"--{idle[0]} has no meaning with --from_scores, which cuts the scores of a finished run: leave it out"
            )
        from sparsity.recut import recut  # heavy imports only when the command line is sound

        recut(args)
        return
    if not args["model"]:
        raise InputError(f"--model is missing: choose one of {', '.join(model_names())}")
    settings, where = read_settings(args.pop("config") or task_file(args["model"], "prune"), args["set"])

    from pruners.command import prune_command

    prune_command(args, settings, where)


if __name__ == "__main__":
    run_command(main)
