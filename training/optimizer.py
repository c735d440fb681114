"""Optimizers of recipes: which parameters decay, and learning rates for parts of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from console.errors import InputError, nearest
from training.schedule import Schedule

OPTIMIZERS = ("adamw", "adam", "sgd")


@dataclass(frozen=True)
class Recipe:
    """The optimizer and its schedule."""

    lr: float  # peak learning rate
    optimizer: str = "adamw"  # adamw; adam with the decay in the gradient (L2); sgd with momentum
    weight_decay: float = 0.01  # not for names in no_decay
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # for adamw and adam
    eps: float = 1e-8  # for adamw and adam
    momentum: float = 0.9  # for sgd
    no_decay: list[str] = field(default_factory=list)  # substrings of parameter names without weight decay
    lr_scale: dict[str, float] = field(default_factory=dict)  # substring of a name -> factor on lr; first match counts
    clip: float | None = None  # largest gradient norm; None: no clipping
    schedule: Schedule = field(default_factory=Schedule)  # warm-up and decay of the rate

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            known = ", ".join(OPTIMIZERS)
            raise InputError(
                f"unknown optimizer '{self.optimizer}'{nearest(self.optimizer, OPTIMIZERS)}: one of {known}"
            )
        if not 0 <= self.momentum < 1:
            raise InputError(f"momentum is a number from 0 to below 1, not {self.momentum}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas are two numbers from 0 to below 1, not {self.betas}")
        scales = [(f"lr_scale of {part}", scale) for part, scale in self.lr_scale.items()]
        for name, value in (("lr", self.lr), ("weight_decay", self.weight_decay), ("eps", self.eps), *scales):
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} must be a number from 0 up, not {value}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be above 0, not {self.clip}; leave it out for no clipping")


def make_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], recipe: Recipe, fused: bool = False
) -> torch.optim.Optimizer:
    """The recipe's optimizer over the parameters that require gradients, grouped by decay and rate.

    fused: a single kernel for each parameter, several times faster on a CPU than a loop over its operations; not for
    float16 with clipping, where it would undo the loss scale itself, after gradients were clipped.
    InputError for a key of `lr_scale` that matches no parameter, whose rate would be ignored silently.
    """
    named = dict(parameters)
    if strange := [part for part in recipe.lr_scale if not any(part in name for name in named)]:
        parts = sorted({part for name in named for part in name.split(".")[:2]})
        raise InputError(
            f"recipe: lr_scale: no parameter has '{strange[0]}'{nearest(strange[0], parts)} in its name: "
            f"they begin with {', '.join(sorted({name.split('.')[0] for name in named}))}"
        )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        if parameter.requires_grad:
            decay = 0.0 if any(part in name for part in recipe.no_decay) else recipe.weight_decay
            scale = next((s for part, s in recipe.lr_scale.items() if part in name), 1.0)
            groups.setdefault((decay, scale), []).append(parameter)
    if not groups:
        raise InputError("no parameter requires gradients: check what is frozen")
    options = [
        {"params": parameters, "weight_decay": decay, "lr": recipe.lr * scale, "peak": recipe.lr * scale}
        for (decay, scale), parameters in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(options, lr=recipe.lr, momentum=recipe.momentum, fused=fused)
    made = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return made(options, betas=(recipe.betas[0], recipe.betas[1]), eps=recipe.eps, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group's peak rate; returns the largest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    return max(group["lr"] for group in optimizer.param_groups)
