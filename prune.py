"""Prune a pretrained vision-language model once, with no knowledge of the task: a mask for every sparsity.

python prune.py --model xvlm-mini --pruner multiflow
python prune.py --from_scores pruned_weights/multiflow/xvlm-mini_multiflow_seed42_scores.safetensors -s 50
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from configs.options import add_options, defining, option_names
from configs.overrides import add_set, read_settings
from configs.precisions import PRECISIONS, known_precision
from configs.schema import model_names, task_file
from console.command_line import Parser
from console.errors import InputError, run_command
from pruners import PRUNERS, REPAIRS
from sparsity import ALLOCATIONS
from sparsity.percents import parse_percents, percent
from sparsity.progressive_config import CHOICES
from storage.atomic import write_json

if TYPE_CHECKING:
    from pruners.outputs import Outputs


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; options that are not given come from configs/<model>/prune.yaml."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
    what = parser.add_argument_group("what")
    what.add_argument("-m", "--model", help=f"one of {', '.join(model_names())}, timm:NAME or hf:ID")
    what.add_argument("-p", "--pruner", help=f"one of {', '.join(PRUNERS)} (default: multiflow)")
    what.add_argument(
        "-s", "--sparsities", nargs="+", help="sparsities in percent of the prunable weights (default: 63 75 90)"
    )
    what.add_argument(
        "--allocation",
        help=f"how the sparsity is shared among layers (default: the method's own): {', '.join(ALLOCATIONS)}, or a "
        "pattern such as 2:4",
    )
    what.add_argument(
        "--repair",
        help=f"exchange weights within the rows of the finished masks, without gradients: {', '.join(REPAIRS)}",
    )
    what.add_argument(
        "--ids", metavar="FILE", help="multiply each layer's scores by its intrinsic dimension in this file"
    )
    what.add_argument("--id_power", type=float, help="exponent of the intrinsic dimension (default: 1)")
    what.add_argument("--config", help="YAML file (default: configs/<model>/prune.yaml); the command line overrides it")
    add_set(what)
    what.add_argument(
        "--weights", help="checkpoint to prune (default: the model's own, see configs/<model>/model.yaml)"
    )
    what.add_argument(
        "--conv", action="store_true", default=None, help="also prune convolutions (timm:NAME and hf:ID models)"
    )
    what.add_argument(
        "--stream",
        action="store_true",
        default=None,
        help="read an hf:FOLDER block by block, and write it again with zeros: models larger than memory",
    )
    what.add_argument(
        "--from_scores", metavar="FILE", help="make masks from saved scores, in seconds, without data or model"
    )
    data = parser.add_argument_group("calibration")
    data.add_argument(
        "--seed", type=int, help="seed of the calibration samples, their augmentation, and random scores (default: 42)"
    )
    data.add_argument(
        "--num_batches", type=int, help="calibration steps (a batch of each side); per round, for methods with rounds"
    )
    data.add_argument("--batch_size", type=int, help="samples per batch of each side")
    data.add_argument("--num_workers", type=int, help="data loader processes; the result does not depend on them")
    data.add_argument("--max_missing", type=float, help="share of calibration images that may be missing or broken")
    run = parser.add_argument_group("run")
    run.add_argument(
        "--output_dir",
        help="masks are written to <output_dir>/<pruner>/ (default: pruned_weights; with --from_scores, next to the "
        "scores)",
    )
    run.add_argument("--resume", action="store_true", help="resume from the statistics that an interrupted run saved")
    run.add_argument("--save_every", type=float, help="seconds between checkpoints of the statistics (default: 60)")
    run.add_argument(
        "--save_scores", action=argparse.BooleanOptionalAction, help="write the scores file (default: yes)"
    )
    run.add_argument("--accelerator", help="cpu, gpu, mps or auto (default: auto)")
    run.add_argument("--devices", type=int, help="devices of this machine that share the calibration (default: 1)")
    run.add_argument("--num_nodes", type=int, help="machines (default: 1)")
    run.add_argument(
        "--precision",
        type=known_precision,
        help=f"precision of the calibration's forward passes: {', '.join(PRECISIONS)} (default: 32-true)",
    )
    return _with_method(parser, arguments)


def _with_method(parser: Parser, arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line with the options of the method, which it or the configuration names."""
    args, others = parser.parse_known_args(arguments)
    if args.pruner in CHOICES and args.pruner not in PRUNERS:
        raise InputError(
            f"{args.pruner} prunes while a task is finetuned: pass --prune {args.pruner} to the task's script, such as "
            f"python image_classification.py --model {args.model or 'resnet-mini'} --prune {args.pruner}"
        )
    if args.pruner:
        PRUNERS.check(args.pruner)
    if args.sparsities:
        parse_percents(args.sparsities)
    asks = {"-h", "--help"} & set(others)
    if not asks and any(word.startswith("-") and not word[1:2].isdigit() and not _owners(word) for word in others):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    name = args.pruner
    if args.from_scores:
        name = None
        given = [key for key, value in vars(args).items() if value not in (None, []) and value is not False]
        if idle := [key for key in given if key not in WITH_SCORES]:
            raise InputError(
                f"--{idle[0]} has no effect with --from_scores, which reads the scores of a finished run: leave it out"
            )
    elif not asks:
        if not args.model:
            raise InputError(f"--model is missing: choose one of {', '.join(model_names())}")
        args.content, args.where = read_settings(args.config or task_file(args.model, "prune"), args.set)
        name = name or args.content.get("pruner", "multiflow")
    if name:
        add_options(parser.add_argument_group(f"options of {name}"), PRUNERS[name].Options)
    else:
        parser.add_argument_group("options of a method", "shown by --pruner NAME --help")
    parser.add_argument("-h", "--help", action="help", help="show this message and exit")
    args, others = parser.parse_known_args(arguments, args)
    if others:
        if not (owners := _owners(others[0])):
            parser.error(f"unrecognized arguments: {' '.join(others)}")
        whom = name or "--from_scores, which reads the scores of a finished run"
        raise InputError(f"{others[0]} has no effect for {whom}: it is an option of {', '.join(owners)}")
    return args


def _owners(word: str) -> list[str]:
    """The methods that have this option."""
    option = word.split("=")[0].replace("--no-", "--")
    return [name for name in PRUNERS if option in option_names(PRUNERS[name].Options)]


WITH_SCORES = ("from_scores", "sparsities", "allocation", "output_dir")
"""Options that --from_scores uses."""


def main(arguments: list[str] | None = None) -> None:
    """Prune, or make masks from saved scores."""
    args = parse_args(arguments)
    if args.from_scores:
        cut(args)
    else:
        prune(args)


def prune(args: argparse.Namespace) -> Outputs:
    """Check the input, calibrate once, make and save the masks, print the result."""
    from calibration.resume import Checkpoint  # heavy imports only once the command line is known to be valid
    from console.interrupt import interrupt
    from console.progress import console, progress_bar
    from console.words import counted
    from data.calibration import data_identity, make_manifest
    from models import load_model
    from models.plans import plan_identity
    from pruners.measuring import measures
    from pruners.outputs import Outputs
    from pruners.preparing import all_failures, calibration_batches, describe, weights_identity
    from pruners.report import print_result
    from pruners.session import Session, needs_preliminary
    from pruners.settings import settings_of
    from pruners.streaming import check_disk, streamable, write_sparse
    from sparsity.weighting import read_ids
    from storage.atomic import no_empty_folder
    from training.fabric import without_training

    settings = settings_of(args)
    if args.stream:
        settings = streamable(args, settings)
    config, method = settings.config, PRUNERS[settings.config.pruner]
    outputs = Outputs.of(
        config.output_dir, args.model, config.pruner, config.allocation, config.seed, settings.switched_off,
        ids=config.ids is not None, repair=config.repair,
    )  # fmt: skip
    ids = read_ids(config.ids, config.id_power) if config.ids else None
    allocation = config.allocation or method.allocation
    passes = measures(allocation, config.repair, settings.options)
    with no_empty_folder(outputs.folder):
        outputs.check_folder(settings.percents)
        if args.resume and not method.resumes:
            console.print(
                f"note: {config.pruner} saves nothing of an interrupted run: --resume starts from the beginning"
            )
        fabric = without_training(config.accelerator, config.devices, config.num_nodes, config.precision)
        interrupt.listen()
        started = time.perf_counter()
        changes = {"conv": True} if config.conv else {}
        streamed = {"stream": True} if args.stream else {}
        model = load_model(args.model, weights=args.weights, overrides=changes | streamed)
        if streamed:
            model.streamed.move(model, fabric.device)
            check_disk(model, outputs.folder, settings.sparsities, method.updates_weights)
        if fabric.is_global_zero:
            describe(model, args.model)
        batches = calibration_batches(model, config) if method.uses_data or passes else None
        available = 0 if batches is None else len(batches)

        source = {"model": args.model, "weights": weights_identity(model), "precision": config.precision} | changes
        source |= plan_identity(model.plan)
        if ids is not None:
            source |= ids.identity
        if config.repair:
            source["repair"] = config.repair
        if settings.switched_off:
            source["left_out"] = settings.switched_off
        identity = source | streamed
        identity |= {
            "pruner": config.pruner,
            "allocation": config.allocation,
            "options": settings.given,
            "seed": config.seed,
            "num_batches": config.num_batches,
            "data": None if batches is None else data_identity(batches),
        }
        for side in () if batches is None else model.sides:
            options = dataclasses.asdict(config.sides[side])
            identity |= {f"sides.{side}.{key}": value for key, value in options.items()}
        by_sparsity = method.uses_rounds or (streamed and method.updates_weights)
        checkpoint = Checkpoint(
            outputs.checkpoint,
            identity | ({"sparsities": settings.percents} if by_sparsity else {}),
            every=config.save_every,
            resume=args.resume,
            write=fabric.is_global_zero,
            notes=lambda: sorted(batches.failed) if batches is not None else [],
        )
        a_round, steps = method.plan(settings.options, config.num_batches, available, len(settings.percents))
        seen = method.plan(settings.options, config.num_batches, available, 1)[1]  # by one mask
        if fabric.is_global_zero:
            about = source | {"options": defining(settings.options)}
            data = {} if batches is None else {"num_batches": seen, "batch_size": config.batch_size}
            if loss := outputs.replaces(settings.sparsities, about, data):
                console.print(f"note: {loss}")
            if batches is not None and available < config.num_batches:
                there = counted(available, "batch")
                console.print(f"note: the data has {there}, fewer than num_batches {config.num_batches}")

        first = sum(min(available, most or available) for most in passes)
        first += min(seen, available) if needs_preliminary(model, method, allocation) else 0
        show = fabric.is_global_zero and batches is not None
        with progress_bar("calibrating", first + steps * method.uses_data or 1, show=show) as advance:
            session = Session(
                model if streamed else fabric.to_device(model),
                [] if batches is None else batches,
                config.pruner,
                seed=config.seed,
                allocation=config.allocation,
                repair=config.repair,
                ids=ids,
                num_batches=a_round,
                checkpoint=checkpoint,
                advance=advance,
                autocast=fabric.autocast,
                **settings.given,
            )
            masks = session.masks(settings.sparsities)

        failed = all_failures(batches, checkpoint)
        if fabric.is_global_zero:
            if batches is not None:
                manifest = make_manifest(batches, seen, config.seed, failed)
                write_json(outputs.manifest, manifest)
                source["calibration"] = {"manifest": outputs.manifest.name, "hash": manifest["hash"]}
            outputs.write(session, masks, source, save_scores=config.save_scores, processes=fabric.world_size)
            checkpoint.finish()
            print_result(masks, outputs, session.seconds, time.perf_counter() - started, failed)
            for sparsity, mask in masks.items() if streamed else ():
                write_sparse(model, mask, outputs.sparse(sparsity))
                console.print(
                    f"{outputs.sparse(sparsity)}/: the model with {percent(sparsity)} % zeros, for from_pretrained"
                )
    return outputs


def cut(args: argparse.Namespace) -> None:
    """Masks of other sparsities from saved scores, in a few seconds, without data or model."""
    from pruners.outputs import Outputs  # heavy imports only once the command line is known to be valid
    from pruners.report import print_result, warn_of_collapses
    from sparsity.picture import draw_layers
    from sparsity.saved_scores import cut_masks, forms_in, read_scores
    from storage.atomic import no_empty_folder

    started = time.perf_counter()
    path, percents = Path(args.from_scores), parse_percents(args.sparsities or [63, 75, 90])
    scores, weights, about = read_scores(path)
    source = {key: value for key, value in about["source"].items() if key != "repair"}  # scores are of before it
    allocation = args.allocation or source["allocation"]
    outputs = Outputs.of_scores(path, source, allocation, percents, args.output_dir)
    with no_empty_folder(outputs.folder):
        outputs.check_folder(percents)
        sparsities = [percent / 100 for percent in percents]
        of_layers = about.get("factors"), about.get("importance") if allocation == source["allocation"] else None
        masks = cut_masks(scores, weights, about["modality"], forms_in(about), allocation, sparsities, *of_layers)
        for sparsity, mask in masks.items():
            mask.source = source | mask.source | {"from_scores": path.name}
            mask.save(outputs.mask(sparsity))
        draw_layers(masks, outputs.picture, f"{outputs.model}, {outputs.label}")
    warn_of_collapses(masks)
    seconds = time.perf_counter() - started
    print_result(masks, outputs, {"calibration": 0.0, "masks": seconds}, seconds, [])


if __name__ == "__main__":
    run_command(main)
