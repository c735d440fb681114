"""Pretrain a smaller model on pairs, distilling the dense one: the step after pruning without a task.

Losses are the model's own of a calibration batch, and the three of training/distillation.py. The recipe is that of the
paper's ports: AdamW, warm-up, cosine schedule, gradients clipped at norm 1.

    python shrink.py pretraining --model xvlm-mini --keep 0.5
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from console.errors import InputError
from console.interrupt import interrupt
from data.readers import Batch
from models.base import Model
from models.tasks import Retriever
from pruners.preparing import calibration_batches
from pruners.settings import PruneConfig
from training.distillation import TOWERS, Distillation, freeze_other_tower
from training.fabric import make_fabric
from training.loop import Callback, Loop, fit
from training.optimizer import Recipe
from training.schedule import Schedule
from training.sole_run import sole_run


class Pretraining(nn.Module):
    """The model with all of its own losses, as `Distillation` takes an objective."""

    def __init__(self, model: Model):
        super().__init__()
        self.model, self.extra_modules = model, nn.ModuleDict()

    def forward(self, batch: Batch, rehearsal: bool = False) -> dict[str, torch.Tensor]:
        """Named losses."""
        return self.model.losses(batch)


def recipe_of(lr: float) -> Recipe:
    """The optimizer of the paper's ports, at a rate."""
    schedule = Schedule(warmup=0.1, decay="cosine")
    return Recipe(lr=lr, weight_decay=3e-4, betas=[0.9, 0.98], clip=1.0, schedule=schedule)


def check_pairs(model: Model) -> None:
    """InputError for a model without features of images and of texts."""
    if not isinstance(model, Retriever):
        raise InputError(
            f"a {type(model).__name__} has no features of images and texts to compare: use shrink.py finetuning"
        )


def relearn(student: Model, teacher: Model, config: PruneConfig, args: argparse.Namespace, folder: Path) -> None:
    """Train the student, in place. folder: of its log and snapshot.

    args: steps, lr, seed, accelerator, sim, feat, hidden, and what else names the run. A killed run resumes from its
    snapshot, bit for bit. InputError for models without features of images and texts.
    """
    recipe = recipe_of(args.lr)
    fabric = make_fabric(args.accelerator, 1, 1, "32-true")
    interrupt.listen()
    fabric.to_device(teacher).eval().requires_grad_(False)
    if args.tower in TOWERS:
        freeze_other_tower(student, args.tower)
    module = Pretraining(student) if args.distil == "none" else Distillation(Pretraining(student), teacher, args)
    batches = calibration_batches(student, replace(config, seed=args.seed, num_batches=args.steps))
    side = student.sides[0]

    def micro_batches(first: int) -> Iterator[Batch]:
        for _, _, batch in batches.units((side,), 0, 1, first, args.steps):
            yield batch

    named = ("model", "weights", "keep", "keep_layers", "steps", "seed", "tower", "distil", "sim", "feat", "hidden")
    identity = {"recipe": asdict(recipe), **{name: getattr(args, name) for name in named}}
    folder.mkdir(parents=True, exist_ok=True)
    with sole_run(fabric, folder):
        loop = Loop("distilling the dense model", recipe, args.steps, args.seed, folder, identity)
        loop.callbacks.append(Callback(after_step=lambda step: student.clamp_temperature()))
        fit(fabric, module, micro_batches, loop)
    student.eval()
