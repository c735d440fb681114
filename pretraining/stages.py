"""Pretraining as a sequence of stages, each an objective with data and a recipe of its own."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from console.errors import InputError, nearest
from console.interrupt import interrupt
from console.progress import console
from data.batches import Sides
from data.randomness import derive_seed
from data.readers import Batch, ReaderConfig, make_reader
from data.tokenizer import load_tokenizer
from models import RANDOM, class_of, load_model
from models.common.checkpoint import LoadReport, load_state
from models.xvlm.model import XVLM
from pretraining.guides import start_images
from pretraining.objectives import OBJECTIVES, Together
from storage.atomic import check_writable
from storage.tensors import read_safetensors, write_safetensors
from training.fabric import make_fabric
from training.loop import Callback, Loop, fit
from training.optimizer import Recipe
from training.passes import passes_notice
from training.replaced import Replaced, missing_images
from training.snapshot import refuse_another_run
from training.sole_run import sole_run


@dataclass(frozen=True)
class Stage:
    """A stage of pretraining."""

    name: str  # names its folder
    objective: str  # a key of OBJECTIVES
    steps: int  # optimizer steps
    batch_size: int  # samples of each side per step, over all processes
    recipe: Recipe
    sides: dict[str, ReaderConfig]  # name -> data


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining in stages."""

    stages: list[Stage]  # in order
    start: str | None = None  # an X-VLM whose image tower initialises a CLIP
    seed: int = 0  # of weights, data order and dropout


def pretrain(args: argparse.Namespace, config: PretrainConfig, folder: Path) -> None:
    """Run the unfinished stages in `folder` and write `<model>.safetensors` there."""
    seed = config.seed if args.seed is None else args.seed
    check_stages(config, args.model, args.devices * args.num_nodes)
    check_writable(folder)
    fabric = make_fabric(args.accelerator, args.devices, args.num_nodes, args.precision)
    interrupt.listen()
    with sole_run(fabric, folder):
        _run_stages(fabric, args, config, folder, seed)


def _run_stages(fabric: Fabric, args: argparse.Namespace, config: PretrainConfig, folder: Path, seed: int) -> None:
    model = load_model(args.model, weights=args.weights or RANDOM, seed=seed)
    if config.start and not args.weights:
        start_images(model, load_model(config.start))
    for number, stage in enumerate(config.stages, start=1):
        finished = folder / f"{number}-{stage.name}.safetensors"
        identity = {"model": args.model, "stage": asdict(stage), "seed": seed, "processes": fabric.world_size}
        identity |= {"precision": args.precision, "weights": args.weights, "start": config.start}
        if finished.is_file():
            load_finished(finished, model, identity)
            continue
        _run_stage(fabric, model, stage, args, folder / f"{number}-{stage.name}", seed, identity)
        if fabric.is_global_zero:
            save_weights(finished, model, identity=identity)
        fabric.barrier()
    if fabric.is_global_zero:
        exported = folder / f"{args.model}.safetensors"
        save_weights(exported, model, small=True)
        console.print(f"weights: {exported} ({exported.stat().st_size / 1e6:.2f} MB)")


def check_stages(config: PretrainConfig, model: str, processes: int) -> None:
    """InputError, before the first stage starts, when any stage is invalid."""
    family = class_of(model)
    names = [stage.name for stage in config.stages]
    if not names:
        raise InputError("stages: a pretraining needs at least one stage")
    for stage in config.stages:
        where = f"stage '{stage.name}'"
        if names.count(stage.name) > 1 or not stage.name or "/" in stage.name:
            raise InputError(f"{where}: a stage needs a name of its own that can name a folder")
        if stage.objective not in OBJECTIVES:
            raise InputError(
                f"{where}: unknown objective '{stage.objective}'{nearest(stage.objective, OBJECTIVES)}: choose one of "
                f"{', '.join(OBJECTIVES)}"
            )
        objective = OBJECTIVES[stage.objective]
        if not issubclass(family, objective.serves):
            known = " and ".join(served.__name__ for served in objective.serves)
            raise InputError(f"{where}: {stage.objective} is not for {model}: it is for {known}")
        absent = [side for side in objective.sides if side not in stage.sides]
        if absent or not stage.sides:
            needed = f"the side '{absent[0]}'" if absent else "at least one side"
            raise InputError(f"{where}: {stage.objective} needs {needed}, given: {', '.join(stage.sides) or 'none'}")
        if extra := [side for side in stage.sides if side not in objective.sides and not objective.reads_more]:
            raise InputError(f"{where}: {stage.objective} does not read the side '{extra[0]}': leave it out")
        boxes = any(side.reader == "mlm_regions" for side in stage.sides.values())
        if processes > 1 and stage.objective == "together" and issubclass(family, XVLM) and not boxes:
            raise InputError(  # DistributedDataParallel needs a gradient of each parameter, also of those for boxes
                f"{where}: X-VLM needs a side of mlm_regions when several processes train: add it, or use one process"
            )
        if stage.steps < 1 or stage.batch_size < 1:
            raise InputError(
                f"{where}: steps and batch_size must be at least 1, not {stage.steps} and {stage.batch_size}"
            )
        if processes > 0 and stage.batch_size % processes:
            raise InputError(
                f"{where}: a batch of {stage.batch_size} cannot be divided among {processes} processes evenly"
            )


def load_finished(path: Path, model: nn.Module, identity: dict[str, Any]) -> None:
    """Load the weights of a finished stage into the model; InputError if another run wrote them or they do not fit."""
    state, metadata = read_safetensors(path)
    if "identity" in metadata:  # otherwise the file was provided as a starting point
        refuse_another_run(path, json.loads(metadata["identity"]), json.loads(json.dumps(identity)))
    load_state(model.inner, state, model.key_rules, LoadReport(str(path), files=[path]))
    model.tie()


def _run_stage(
    fabric: Fabric,
    model: nn.Module,
    stage: Stage,
    args: argparse.Namespace,
    folder: Path,
    seed: int,
    identity: dict[str, Any],
) -> None:
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    data = stage_data(model, stage, fabric.world_size, seed)
    replaced = Replaced()
    for side in data.sides.values():
        for notice in (missing_images(side.reader.source), passes_notice(side, stage.steps * fabric.world_size)):
            if notice and fabric.is_global_zero:
                console.print(notice)

    def micro_batches(first: int) -> Iterator[dict[str, Batch]]:
        numbers = [step * fabric.world_size + fabric.global_rank for step in range(first, stage.steps)]
        wanted = [(number, side) for number in numbers for side in data.sides]
        sides: dict[str, Batch] = {}
        for _, side, loaded in data.load(wanted, args.num_workers):
            sides[side] = loaded.batch
            replaced.note(loaded.failed)
            if len(sides) == len(data.sides):
                yield sides
                sides = {}

    loop = Loop(
        title=f"{args.model} {stage.name}",
        recipe=stage.recipe,
        steps=stage.steps,
        seed=seed,
        folder=folder,
        identity=identity,
        snapshot_seconds=args.snapshot_seconds,
    )
    with torch.random.fork_rng(devices=[]):  # heads are equal whether earlier stages ran now or were loaded
        torch.manual_seed(derive_seed(seed, "objective", stage.name))
        objective = OBJECTIVES[stage.objective](model)
    if hasattr(objective, "after_step"):
        loop.callbacks.append(Callback(after_step=lambda step: objective.after_step(step, stage.steps)))
    fit(fabric, objective, micro_batches, loop)
    if notice := replaced.summary():
        console.print(notice)
    if hasattr(objective, "finish"):
        objective.finish()
    for parameter, value in required.items():
        parameter.requires_grad_(value)


def stage_data(model: nn.Module, stage: Stage, processes: int, seed: int) -> Sides:
    """The sides of a stage as batches by number, each for one process."""
    tokenizer = load_tokenizer(model.tokenizer)
    readers = {name: make_reader(config, model.image_shape, tokenizer) for name, config in stage.sides.items()}
    compared = processes > 1 and issubclass(OBJECTIVES[stage.objective], Together)
    return Sides(readers, stage.batch_size // processes, seed, whole=compared)


def save_weights(path: Path, model: nn.Module, small: bool = False, identity: dict[str, Any] | None = None) -> None:
    """The model's state dict, each tied tensor once.

    small: in half precision, and without tensors that are recreated on loading (momentum copies, queues, a classifier).
    identity: of the run, stored in the file for `load_finished`.
    """
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and not (small and model.key_rules.fresh(name)):
            seen.add(id(tensor))
            state[name] = tensor.half() if small and tensor.is_floating_point() else tensor
    write_safetensors(path, state, {"format": "pt"} | ({"identity": json.dumps(identity)} if identity else {}))
