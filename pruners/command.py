"""What `prune.py` does once its command line is read: check, calibrate, cut, save, show."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch import nn

from calibration.resume import Checkpoint
from configs.schema import parse
from console.errors import InputError
from console.interrupt import interrupt
from console.progress import console, progress_bar
from console.words import counted, share_of_matrices
from data.calibration import CalibrationBatches, data_identity, make_manifest
from data.readers import ReaderConfig, make_reader
from data.tokenizer import load_tokenizer
from models import load_model
from models.layers import weights_in_matrices
from models.library.finding import told_skipped
from pruners import PRUNERS
from pruners.outputs import Outputs
from pruners.replaced import replaced
from pruners.report import print_result
from pruners.session import Session, needs_preliminary
from sparsity.allocation import check_allocation
from sparsity.percents import parse_percents
from storage.atomic import no_empty_folder
from storage.hashing import hash_files, hash_tensors
from training.fabric import make_fabric

METHOD_OPTIONS = ("epochs", "schedule", "lambda_", "scratch_dir", "reached", "emitted")
"""Command-line options that are fields of some method's Options."""


@dataclass(frozen=True)
class PruneConfig:
    """configs/<model>/prune.yaml. methods: values that differ for a pruner (num_batches and its own options)."""

    sides: dict[str, ReaderConfig]
    pruner: str = "multiflow"
    sparsities: list[float] = field(default_factory=lambda: [63.0, 75.0, 90.0])
    allocation: str | None = None
    seed: int = 42
    num_batches: int = 3000
    batch_size: int = 32
    num_workers: int = 8
    max_missing: float = 0.05
    output_dir: str = "pruned_weights"
    save_every: float = 60.0
    save_scores: bool = True
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    precision: str = "32-true"
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, value, least in (
            ("num_batches", self.num_batches, 1),
            ("the batch size", self.batch_size, 1),
            ("num_workers", self.num_workers, 0),
            ("save_every", self.save_every, 0),
            ("seed", self.seed, 0),
        ):
            if not value >= least:  # nor NaN
                raise InputError(f"{what} must be at least {least}, not {value}")
        if not 0 <= self.max_missing <= 1:
            raise InputError(f"max_missing is a share of the images, from 0 to 1, not {self.max_missing}")


def prune_command(args: dict[str, Any], settings: dict[str, Any], where: str) -> Outputs:
    """Prune as the command line `args` and the YAML `settings` (read from `where`) say; returns where the files are."""
    config, options = merge(args, settings, where)
    percents = parse_percents(args["sparsities"] or config.sparsities)
    method = PRUNERS[config.pruner]
    check_allocation(config.allocation or method.allocation, [percent / 100 for percent in percents])
    left_out = [part for part in ("reached", "emitted") if args.get(part) is False and part in options]
    outputs = Outputs.of(config.output_dir, args["model"], config.pruner, config.allocation, config.seed, left_out)
    with no_empty_folder(outputs.folder):
        _prune(args, config, options, percents, outputs)
    return outputs


def _prune(
    args: dict[str, Any], config: PruneConfig, options: dict[str, Any], percents: list[float], outputs: Outputs
) -> None:
    """Everything from the first look at the model and the data to the files in the folder."""
    outputs.check_folder(percents)
    method = PRUNERS[config.pruner]
    own = parse(method.Options, options, f"pruner '{config.pruner}'")
    if args["resume"] and not method.resumes:
        console.print(f"note: {config.pruner} keeps nothing of an interrupted run: --resume starts at the beginning")
    fabric = make_fabric(config.accelerator, config.devices, config.num_nodes, config.precision)
    interrupt.listen()
    started = time.perf_counter()
    model = load_model(args["model"], weights=args["weights"])
    if fabric.is_global_zero:
        describe(model, args["model"])
    batches = make_batches(model, config) if method.uses_data else None
    source = {"model": args["model"], "weights": weights_identity(model), "precision": config.precision}
    if outputs.left_out:
        source["left_out"] = list(outputs.left_out)
    checkpoint = Checkpoint(
        outputs.checkpoint,
        source
        | {"pruner": config.pruner, "allocation": config.allocation, "options": options, "seed": config.seed}
        | {"num_batches": config.num_batches, "data": None if batches is None else data_identity(batches)}
        | ({"sparsities": percents} if method.uses_rounds else {}),
        every=config.save_every,
        resume=bool(args["resume"]),
        write=fabric.is_global_zero,
        notes=lambda: sorted(batches.failed) if batches is not None else [],
    )
    a_round, steps = method.plan(own, config.num_batches, 0 if batches is None else len(batches), len(percents))
    seen = method.plan(own, config.num_batches, 0 if batches is None else len(batches), 1)[1]  # by one mask
    if fabric.is_global_zero:
        about = source | {"options": {f.name: getattr(own, f.name) for f in dataclasses.fields(own) if f.compare}}
        loss = replaced(outputs, [percent / 100 for percent in percents], about, None if batches is None else seen)
        if loss is not None:
            console.print(f"note: {loss}")
        if batches is not None and len(batches) < config.num_batches:
            there = counted(len(batches), "batch")
            console.print(f"note: the data has {there}, fewer than the {config.num_batches} asked for")
    first = min(seen, len(batches)) if batches is not None and needs_preliminary(model, method) else 0
    with progress_bar("calibrating", first + steps or 1, show=fabric.is_global_zero and method.uses_data) as advance:
        session = Session(
            fabric.to_device(model),
            [] if batches is None else batches,
            config.pruner,
            seed=config.seed,
            allocation=config.allocation,
            num_batches=a_round,
            checkpoint=checkpoint,
            advance=advance,
            autocast=fabric.autocast,
            **options,
        )
        masks = session.masks([percent / 100 for percent in percents])
    failed = all_failures(batches, checkpoint)
    if fabric.is_global_zero:
        if batches is not None:
            manifest = make_manifest(batches, seen, config.seed, failed)
            outputs.write_manifest(manifest)
            source["calibration"] = {"manifest": outputs.manifest.name, "hash": manifest["hash"]}
        outputs.write(session, masks, source, save_scores=config.save_scores, processes=fabric.world_size)
        checkpoint.finish()
        print_result(masks, outputs, session.seconds, time.perf_counter() - started, failed)


def merge(args: dict[str, Any], settings: dict[str, Any], where: str) -> tuple[PruneConfig, dict[str, Any]]:
    """The YAML settings under the command line, and the method's own options among them."""
    config = parse(PruneConfig, settings, where)
    name = args["pruner"] or config.pruner
    method = PRUNERS[name]
    for known in config.methods:
        PRUNERS[known]
    special = dict(config.methods.get(name, {}))
    given = {f.name: args[f.name] for f in dataclasses.fields(PruneConfig) if args.get(f.name) is not None}
    given.pop("sparsities", None)
    shared = {key: special.pop(key) for key in list(special) if key in ("num_batches", "batch_size")}
    config = dataclasses.replace(config, **(shared | given | {"pruner": name}))
    own = {f.name for f in dataclasses.fields(method.Options)}
    for option in METHOD_OPTIONS:
        if args.get(option) is not None:
            if option in own:
                special[option] = args[option]
            else:
                typed = f"no-{option}" if args[option] is False else option
                console.print(f"note: --{typed} has no meaning for {name} and is ignored")
    return config, special


def describe(model: nn.Module, name: str) -> None:
    """Say what was loaded and what is to be pruned."""
    layers = model.prunable_layers()
    prunable, whole = weights_in_matrices(model)
    total = sum(p.numel() for p in model.parameters())
    report = model.load_report
    if report is not None:
        console.print(
            str(report) if report.is_remarkable else f"{report.source}: {counted(report.loaded, 'tensor')} loaded"
        )
    share = share_of_matrices(prunable, whole)
    console.print(f"{name}: {total:,} parameters, {counted(len(layers), 'layer')} with {share}")
    for line in told_skipped(getattr(model, "skipped", ())):
        console.print(f"  not pruned  {line}")


def make_batches(model: nn.Module, config: PruneConfig) -> CalibrationBatches:
    """The calibration data of the model's sides; its files are looked for before the work starts."""
    missing = [side for side in model.sides if side not in config.sides]
    if missing:
        raise InputError(f"the configuration has no data for the side '{missing[0]}': add it under `sides:`")
    tokenizer = load_tokenizer(model.tokenizer)
    readers = {name: make_reader(config.sides[name], model.image_shape, tokenizer) for name in model.sides}
    for name, reader in readers.items():
        if config.batch_size > (there := len(reader.source)):
            raise InputError(
                f"a batch of {config.batch_size} takes more than the {there} samples of the side '{name}': lower "
                "--batch_size"
            )
    batches = CalibrationBatches(
        readers,
        config.batch_size,
        config.seed,
        config.num_workers,
        limit=config.num_batches,
        max_missing=config.max_missing,
    )
    batches.check_files(len(batches))
    return batches


def weights_identity(model: nn.Module) -> dict[str, str]:
    """File and hash of the weights, of all shards in order (of the tensors, where a library read them); random ones
    say so."""
    if model.load_report is None:
        return {"file": "random", "sha256": ""}
    report = model.load_report
    digest = hash_files(report.files) if report.files else hash_tensors(model.state_dict())
    return {"file": report.source, "sha256": digest}


def all_failures(batches: CalibrationBatches | None, checkpoint: Checkpoint) -> list[str]:
    """Images that could not be read, by any process, before an interruption or since."""
    failed = set(batches.failed if batches is not None else ()) | set(checkpoint.remembered or ())
    if dist.is_available() and dist.is_initialized():
        parts: list[set[str]] = [set()] * dist.get_world_size()
        dist.all_gather_object(parts, failed)
        failed = set().union(*parts)
    return sorted(failed)
