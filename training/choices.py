"""What a finetuning command chose: the mask, the snapshot, the output folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from configs.limits import at_least
from console.errors import InputError
from console.progress import console
from sparsity.mask import Mask

SECONDS = "seconds.json"


def chosen_mask(args: argparse.Namespace) -> Mask | None:
    """The mask to train under; InputError when neither a mask nor --dense is given."""
    if args.dense:
        if args.mask:
            console.print("--dense and --mask are both given: training all weights, the mask is not used")
        return None
    if not args.mask:
        raise InputError("give the mask to train under with --mask FILE, or --dense to train all weights")
    return Mask.load(args.mask)


def chosen_snapshot(args: argparse.Namespace) -> Path | None:
    """The snapshot asked for; InputError when it is not there."""
    if args.snapshot is None:
        return None
    if not Path(args.snapshot).is_file():
        raise InputError(f"there is no snapshot {args.snapshot}: check the path, or leave --snapshot out")
    return Path(args.snapshot)


def earlier_seconds(folder: Path, start: Path | None) -> Path | None:
    """The file with what the earlier sittings took: beside the snapshot that the run goes on from; None where none."""
    own = folder / "snapshot.pt"
    snapshot = own if own.is_file() else start
    return None if snapshot is None else snapshot.parent / SECONDS


def output_folder(args: argparse.Namespace, below: Path, seed: int) -> Path:
    """Where the run writes; with --incremental the first of <folder>, <folder>_2, ... that is not there yet."""
    name = args.output_dir or f"runs/{below}/{args.model}_{mask_label(args)}_seed{seed}"
    if args.debug:
        name += "_debug"
    folder, number = Path(name), 1
    while args.incremental and folder.exists():
        number += 1
        folder = Path(f"{name}_{number}")
    return folder


def mask_label(args: argparse.Namespace) -> str:
    """What the output folder is called after the model: the mask, or the run that wrote the weights that hold it."""
    if args.dense or not args.mask:
        return "dense"
    path = Path(args.mask).resolve()
    return (path.parent.name if path.stem == "last" else path.stem).removeprefix(f"{args.model}_")


def check_numbers(args: argparse.Namespace) -> None:
    """InputError for numbers of the command line that mean nothing."""
    at_least(args, 1, "devices", "num_nodes")
    at_least(args, 0, "num_workers", "snapshot_seconds", "seed")
