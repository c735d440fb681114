"""Open a run: folder, lock, seed, processes, clock and logs."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from torch import nn

from configs.limits import at_least
from console.errors import InputError
from console.interrupt import interrupt
from console.progress import console
from console.words import agreed, counted
from models import RANDOM, file_name
from models.library.finding import skipped_lines
from pruners import PRUNERS
from sparsity.mask import Mask
from sparsity.percents import percent
from sparsity.progressive import Progressive
from sparsity.progressive_config import CHOICES, PROMPTED, SEARCHES, ProgressiveConfig, used_by
from sparsity.published import contains_mask
from sparsity.search import Search
from sparsity.sparsifiers import Dense, Fixed, Sparsifier
from storage.atomic import check_writable, no_empty_folder
from training.clock import Clock
from training.fabric import loader_processes, make_fabric
from training.kept import Count, count_kept
from training.logging_wandb import WandbLog
from training.results import versions
from training.searching import FOLDER
from training.sole_run import sole_run

SECONDS = "seconds.json"
DEBUG_SAMPLES = 32
TEACHER = ("teacher", "teacher_weights", "distil", "sim", "feat", "hidden")
NO_IDENTITY = ("snapshot_steps", "seed", "precision", "progressive")
"""Fields of a configuration that are not part of the run's identity, or are recorded separately."""


@dataclass
class Run:
    """An open run."""

    args: argparse.Namespace
    config: Any  # a training.task.Finetuning
    name: str  # of the task
    dataset: str  # the chosen one, of a task with several
    fabric: Fabric
    folder: Path
    seed: int
    precision: str
    workers: int  # loader processes of this process
    snapshot: Path | None  # to resume from where the folder has none
    clock: Clock
    software: dict[str, Any]  # versions
    kept: dict[str, dict[str, Count]] = field(default_factory=dict)  # counts by point in time and modality
    wandb: WandbLog = field(default_factory=WandbLog)
    before: dict[str, Any] = field(default_factory=dict)  # metrics between a search and training
    small: dict[str, Any] = field(default_factory=dict)  # sizes and speeds of the smaller model, if the run writes one
    begun: bool = False  # whether the folder is confirmed to be this run's

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.fabric.is_global_zero

    @property
    def world(self) -> int:
        """Number of processes."""
        return self.fabric.world_size

    @property
    def limit(self) -> int | None:
        """Largest number of samples per evaluation; None: all."""
        return DEBUG_SAMPLES if self.args.debug else self.config.samples

    def identity(self, sparsifier: Sparsifier) -> dict[str, Any]:
        """What defines the run, as JSON."""
        args = self.args
        found = {
            "task": self.name,
            "model": args.model,
            "weights": args.weights,
            **sparsifier.identity(),
            "config": {key: value for key, value in asdict(self.config).items() if key not in NO_IDENTITY},
            "seed": self.seed,
            "processes": self.world,
            "precision": self.precision,
            "compile": args.compile or None,
            "skip_eval": getattr(args, "skip_eval", None) or None,
            "evaluate": (args.split or "test") if args.evaluate else None,
            **({"teacher": [getattr(args, name) for name in TEACHER]} if args.teacher else {}),
            **({"only": args.only} if args.only else {}),
        }
        return json.loads(json.dumps(found))


@contextlib.contextmanager
def open_run(args: argparse.Namespace, config: Any, name: str, variant: str = "", dataset: str = "") -> Iterator[Run]:
    """Open the run of a command line; its folder is locked until the run is closed.

    variant: a subfolder of the task's. InputError for invalid numbers, missing devices, a folder that cannot be
    written, and one that another run is using.
    """
    at_least(args, 1, "devices", "num_nodes")
    check_training(args)
    if args.split and not args.evaluate:
        raise InputError(f"--split {args.split} is for --evaluate: add --evaluate, or leave it out")
    at_least(args, 0, "num_workers", "snapshot_seconds", "seed")
    config.accumulation(args.devices * args.num_nodes)
    seed = config.seed if args.seed is None else args.seed
    precision = args.precision or config.precision
    fabric = make_fabric(args.accelerator, args.devices, args.num_nodes, precision)
    config.accumulation(fabric.world_size)
    # Only the first process chooses an --incremental folder: others would find it taken.
    folder = fabric.broadcast(output_folder(args, config, Path(name, dataset or variant), seed))
    with no_empty_folder(folder), sole_run(fabric, folder):
        check_writable(folder)
        interrupt.listen()
        snapshot = chosen_snapshot(args)
        run = Run(
            args, config, name, dataset, fabric, folder, seed, precision,
            workers=loader_processes(fabric, args.num_workers, args.devices),
            snapshot=snapshot,
            clock=Clock(folder / SECONDS, earlier_seconds(folder, snapshot)),
            software=versions() if fabric.is_global_zero else {},  # now: the checkout may change during training
        )  # fmt: skip
        done = False
        try:
            yield run
            done = True
        finally:
            run.wandb.close(failed=not done)
            if run.leads and run.begun:  # otherwise the folder may be another run's
                run.clock.save()


def check_training(args: argparse.Namespace) -> None:
    """InputError for options of a teacher without one, for training with --evaluate, and for negative loss weights."""
    given = [name for name in TEACHER[1:] if getattr(args, name) is not None]
    if given and not args.teacher:
        raise InputError(f"--{given[0]} needs a teacher: add --teacher MODEL, or leave it out")
    for name in ("teacher", "only", "prune", "sparsity"):
        if args.evaluate and getattr(args, name) is not None:
            raise InputError(f"--{name} is for training, and --evaluate does not train: leave one out")
    at_least(args, 0, *TEACHER[3:])


def chosen_sparsifier(run: Run) -> Sparsifier:
    """The sparsifier chosen by the command line or the configuration; InputError when none is chosen.

    With --evaluate, weights that contain their mask are evaluated under it, others as they are.
    """
    args = run.args
    if not args.evaluate and (config := progressive_config(args, run.config)) is not None:
        if config.prune == PROMPTED and not run.config.prompted:
            raise InputError(
                f"{PROMPTED} trains a visual prompt for classification, not for {run.name}: use python "
                "image_classification.py with configs/<model>/prompts.yaml, or --prune hydra, the same search without "
                "a prompt"
            )
        if args.debug:
            config = replace(config, interval=1)  # --debug has two steps, fewer than most intervals
        if config.prune in SEARCHES and args.mask:
            raise InputError(f"--prune {config.prune} searches over all weights: leave --mask out")
        kind = Search if config.prune in SEARCHES else Progressive
        # In half precision the loss scaler skips steps with infinite gradients.
        return kind(config, Mask.load(args.mask) if args.mask else None, may_overflow=run.precision == "16-mixed")
    if args.dense and args.mask:
        console.print("--dense and --mask are both given: all weights are trained, and the mask is not used")
    if (path := mask_file(args)) is not None:
        return Fixed(Mask.load(path))
    if not args.evaluate and not args.dense:
        raise InputError(
            "give the mask to train under with --mask FILE, --prune METHOD to prune while training, or --dense to "
            "train all weights"
        )
    return Dense()


def mask_file(args: argparse.Namespace) -> str | None:
    """The mask file: --mask, or weights with --evaluate that contain their mask. None: no file."""
    if args.dense or args.mask:
        return None if args.dense else args.mask
    inside = args.evaluate and args.weights not in (None, RANDOM) and contains_mask(args.weights)
    return args.weights if inside else None


def progressive_config(args: argparse.Namespace, config: Any) -> ProgressiveConfig | None:
    """The section `progressive`, overridden by the command line; None without pruning while training.

    --dense switches the section off. InputError for options that then have no effect.
    """
    given = {f.name: value for f in fields(ProgressiveConfig) if (value := getattr(args, f.name, None)) is not None}
    section = ProgressiveConfig() if config.progressive is None else config.progressive
    if args.dense and not given:
        return None
    if args.dense:
        raise InputError(f"--{next(iter(given))} prunes while training, but --dense does not prune: leave one out")
    method = given.get("prune", section.prune)
    if method in PRUNERS:
        raise InputError(
            f"{method} prunes before training: python prune.py --pruner {method} makes a mask, and --mask trains under "
            f"it; --prune takes {', '.join(CHOICES)}"
        )
    if method is None and given:
        raise InputError(f"--{next(iter(given))} has no effect without --prune METHOD: add it, or leave this out")
    if method is None:
        return None
    config = replace(section, **given)
    if idle := [key for key in given if method not in used_by(key)]:
        raise InputError(f"--{idle[0]} has no effect for --prune {method}: it is for {', '.join(used_by(idle[0]))}")
    return config


def sparsify(run: Run, model: nn.Module, sparsifier: Sparsifier) -> None:
    """Move the model to its device, attach its sparsifier, and count the kept weights."""
    run.fabric.to_device(model)  # first: scores and states are created on the weights' device
    sparsifier.attach(model)
    report = model.load_report
    if run.args.evaluate and run.leads and report is not None and report.fresh:
        made = counted(len(report.fresh), "tensor")
        console.print(
            f"note: {report.source} lacks {made} (first: {report.fresh[0]}), which are newly initialised: metrics "
            "mean little",
            markup=False,
        )
    if run.leads and isinstance(sparsifier, Fixed) and (left := sparsifier.left_out):
        console.print(
            f"note: {counted(len(left), 'layer', 'is')} in the mask, but not prunable in this model, and "
            f"{agreed(len(left), 'stays')} dense: {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}; "
            "model: {prune_head: true} prunes a classifier, too (timm:, hf:)",
            markup=False,
        )
    if run.leads and isinstance(sparsifier, Progressive):
        for line in skipped_lines(model.skipped):
            console.print(f"  not pruned  {line}", markup=False)
    cut = "at the first cut" if isinstance(sparsifier, Search) else "after loading the mask"
    run.kept["at the start" if sparsifier.mask is None else cut] = count_kept(model)


def chosen_snapshot(args: argparse.Namespace) -> Path | None:
    """The snapshot given by --snapshot; InputError when it does not exist."""
    if args.snapshot is None:
        return None
    if not Path(args.snapshot).is_file():
        raise InputError(f"there is no snapshot {args.snapshot}: check the path, or leave --snapshot out")
    return Path(args.snapshot)


def earlier_seconds(folder: Path, start: Path | None) -> Path | None:
    """The file with the seconds so far, in the folder of the run to resume; None if there is none."""
    if any((folder / stage / "snapshot.pt").is_file() for stage in ("", FOLDER)):
        return folder / SECONDS
    if start is None:
        return None
    return (start.parent.parent if start.parent.name == FOLDER else start.parent) / SECONDS


def output_folder(args: argparse.Namespace, config: Any, below: Path, seed: int) -> Path:
    """The output folder; with --incremental the first of <folder>, <folder>_2, ... that does not exist."""
    ending = args.split or "test" if args.evaluate else f"seed{seed}"
    own = f"runs/{below}/{file_name(args.model)}_{run_label(args, config)}_{ending}"
    name = str(Path(args.output_dir or own))  # without a last slash
    if args.debug:
        name += "_debug"
    folder, number = Path(name), 1
    while args.incremental and folder.exists():
        number += 1
        folder = Path(f"{name}_{number}")
    return folder


def run_label(args: argparse.Namespace, config: Any) -> str:
    """The output folder's name after the model's: the pruning method, the mask, the run of the weights, or dense."""
    if not args.evaluate and (chosen := progressive_config(args, config)) is not None:
        return f"{chosen.prune}_{percent(chosen.sparsity / 100)}"
    named = (None if args.dense else args.mask) or (args.weights if args.evaluate else None)
    if not named:
        return "dense"
    path = Path(named).resolve()
    own = path.stem in ("last", "best")
    label = f"{path.parent.name}_{path.stem}" if own and args.evaluate else path.parent.name if own else path.stem
    return label.removeprefix(f"{file_name(args.model)}_")
