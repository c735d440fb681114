"""Pretraining as a sequence of stages, each an objective with data and a recipe of its own."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import nn

from console.errors import InputError, nearest
from console.interrupt import interrupt
from console.progress import console
from data.batches import Sides
from data.readers import Batch, ReaderConfig, make_reader
from data.tokenizer import load_tokenizer
from models import load_model
from storage.tensors import read_safetensors, write_safetensors
from training.fabric import make_fabric
from training.loop import Loop, fit
from training.optimizer import Recipe
from training.pretraining import OBJECTIVES


@dataclass(frozen=True)
class Stage:
    """objective: a key of OBJECTIVES. sides: the data. batch_size: samples a side, step and process together."""

    name: str
    objective: str
    steps: int
    batch_size: int
    recipe: Recipe
    sides: dict[str, ReaderConfig]


@dataclass(frozen=True)
class PretrainConfig:
    """The stages in order and the seed of everything random."""

    stages: list[Stage]
    seed: int = 0


def pretrain(args: argparse.Namespace, config: PretrainConfig, folder: Path) -> None:
    """Run the unfinished stages in `folder` and write `<model>.safetensors` there."""
    seed = config.seed if args.seed is None else args.seed
    fabric = make_fabric(args.accelerator, args.devices, args.num_nodes, args.precision)
    interrupt.listen()
    model = load_model(args.model, weights=args.weights or "random")
    if args.weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.reset()
    for number, stage in enumerate(config.stages, start=1):
        finished = folder / f"{number}-{stage.name}.safetensors"
        if finished.is_file():
            model.load_state_dict(_untied(read_safetensors(finished)[0], model))
            continue
        _run_stage(fabric, model, stage, args, folder / f"{number}-{stage.name}", seed)
        if fabric.is_global_zero:
            save_weights(finished, model)
        fabric.barrier()
    if fabric.is_global_zero:
        exported = folder / f"{args.model}.safetensors"
        save_weights(exported, model, small=True)
        console.print(f"weights: {exported} ({exported.stat().st_size / 1e6:.2f} MB)")


def _run_stage(
    fabric: Fabric, model: nn.Module, stage: Stage, args: argparse.Namespace, folder: Path, seed: int
) -> None:
    if stage.objective not in OBJECTIVES:
        raise InputError(f"unknown objective '{stage.objective}'{nearest(stage.objective, OBJECTIVES)}")
    if stage.batch_size % fabric.world_size:
        raise InputError(
            f"stage {stage.name}: a batch of {stage.batch_size} cannot be dealt to {fabric.world_size} processes evenly"
        )
    required = {parameter: parameter.requires_grad for parameter in model.parameters()}
    data = stage_data(model, stage, stage.batch_size // fabric.world_size, seed)

    def micro_batches(first: int) -> Iterator[dict[str, Batch]]:
        numbers = [step * fabric.world_size + fabric.global_rank for step in range(first, stage.steps)]
        wanted = [(number, side) for number in numbers for side in data.sides]
        sides: dict[str, Batch] = {}
        for _, side, loaded in data.load(wanted, args.num_workers):
            sides[side] = loaded.batch
            if len(sides) == len(data.sides):
                yield sides
                sides = {}

    loop = Loop(
        title=f"{args.model} {stage.name}",
        recipe=stage.recipe,
        steps=stage.steps,
        seed=seed,
        folder=folder,
        identity={"model": args.model, "stage": asdict(stage), "seed": seed, "processes": fabric.world_size},
    )
    objective = OBJECTIVES[stage.objective](model)
    if hasattr(objective, "after_step"):
        loop.after_step.append(lambda step: objective.after_step(step, stage.steps))
    fit(fabric, objective, micro_batches, loop)
    if hasattr(objective, "finish"):
        objective.finish()
    for parameter, value in required.items():
        parameter.requires_grad_(value)


def stage_data(model: nn.Module, stage: Stage, batch_size: int, seed: int) -> Sides:
    """The sides of a stage as batches by number."""
    tokenizer = load_tokenizer(model.tokenizer)
    readers = {name: make_reader(config, model.image_shape, tokenizer) for name, config in stage.sides.items()}
    return Sides(readers, batch_size, seed)


def save_weights(path: Path, model: nn.Module, small: bool = False) -> None:
    """The model's state dict, each tied tensor once.

    small: in half precision, and without what the model makes anew when it is loaded (momentum copies, queues, a
    classifier).
    """
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen and not (small and model.key_rules.fresh(name)):
            seen.add(tensor.data_ptr())
            state[name] = tensor.half() if small and tensor.is_floating_point() else tensor
    write_safetensors(path, state, {"format": "pt"})


def _untied(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """A saved state dict with every name of tied tensors again."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict().items():
        names.setdefault(tensor.data_ptr(), []).append(name)
    return {name: state[next(n for n in group if n in state)] for group in names.values() for name in group}
