"""Options of pruning while training: a section of configurations, and options of scripts."""

from __future__ import annotations

from dataclasses import dataclass

from configs.options import option
from console.errors import InputError, nearest
from sparsity.percents import parse_percents

METHODS = ("platon", "taylor", "magnitude")
PROMPTED = "vpns"  # the search that trains a prompt along
SEARCHES = ("hydra", PROMPTED)
CHOICES = (*METHODS, *SEARCHES)
SCORE_INITS = ("published", "magnitude")


@dataclass(frozen=True)
class ProgressiveConfig:
    """How a run prunes while it trains: the section `progressive` of a configuration, and options of its script."""

    prune: str | None = option(
        None, f"method that prunes while training: {', '.join(CHOICES)} (instead of --mask; published: --pruner_name)"
    )
    sparsity: float = option(
        80.0, "final sparsity in percent of the prunable weights (published: 1 - --final_threshold)", "-s"
    )
    dense_until: float = option(0.2, "share of the run before the first mask (published: --initial_warmup)")
    settle: float = option(0.2, "share of the run at the final sparsity (published: --final_warmup)")
    interval: int = option(10, "steps from one mask to the next (published: --deltaT)")
    beta1: float = option(0.85, "platon: decay of the running mean of sensitivities")
    beta2: float = option(
        0.95, "platon: decay of the running mean of their uncertainty; 1: not used, 0: of this window alone"
    )
    freeze: bool = option(
        False,
        "fix the mask once the final sparsity is reached, instead of pruning again each step; with --prompt and "
        "--dense or --mask: train only the prompt",
    )
    min_kept: float = option(0, "smallest number of weights kept in every layer; below 1: a share")
    biases: bool = option(False, "also prune the biases of these layers, as published; masks hold weights only")
    modality: str | None = option(None, "prune only this modality, to the given sparsity (vision, text, ...)")
    search: float = option(
        0.5, "hydra, vpns: share of the epochs that train scores with frozen weights, rounded down to whole ones"
    )
    score_lr: float | None = option(
        None, "hydra, vpns: learning rate of the scores (default: 1.2 / search steps; 1e-4 in published runs)"
    )
    score_decay: float = option(1e-4, "hydra, vpns: L2 decay of the scores")
    score_init: str = option(
        "published", "hydra, vpns: initial scores; published: sqrt(6 / fan-in) W / max|W|; magnitude: W / rms"
    )
    structured: bool = option(
        False,
        "hydra, vpns: remove whole channels, neurons and heads; -s is the share of these units, and a smaller model "
        "is written",
    )
    ids: str | None = option(
        None, "multiply each layer's scores by its intrinsic dimension in this file (published: --useID)"
    )
    id_power: float = option(1.0, "exponent of the intrinsic dimension")

    def __post_init__(self) -> None:
        if self.prune is not None and self.prune not in CHOICES:
            raise InputError(
                f"unknown method '{self.prune}'{nearest(self.prune, CHOICES)}: --prune takes {', '.join(CHOICES)}"
            )
        parse_percents([f"{self.sparsity:g}"])  # for its errors
        for name, least in (("interval", 1), ("min_kept", 0), ("score_decay", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name):g}")
        if self.min_kept > 1 and self.min_kept % 1:
            raise InputError(f"min_kept is a number of weights, or a share below 1, not {self.min_kept:g}")
        if self.score_init not in SCORE_INITS:
            raise InputError(f"score_init is one of {', '.join(SCORE_INITS)}, not '{self.score_init}'")
        for name in ("dense_until", "settle", "search", "beta1", "beta2"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} lies between 0 and 1, not at {getattr(self, name):g}")
        if self.score_lr is not None and not self.score_lr > 0:
            raise InputError(f"score_lr must be above 0, not {self.score_lr}")
        if not self.settle > 0:
            raise InputError("settle must be above 0: the run would end before it reaches the final sparsity")
        if self.dense_until + self.settle > 1:
            raise InputError(
                f"dense_until {self.dense_until:g} and settle {self.settle:g} add up to more than the whole run: "
                "their sum is at most 1"
            )
        if self.prune in SEARCHES and not 0 < self.search < 1:
            raise InputError(f"search is a share of the run above 0 and below 1, not {self.search:g}")


def used_by(name: str) -> tuple[str, ...]:
    """The methods that use an option."""
    if name in ("beta1", "beta2"):
        return ("platon",)
    if name in ("search", "score_lr", "score_decay", "score_init", "structured"):
        return SEARCHES
    return METHODS if name in ("dense_until", "settle", "interval", "freeze", "biases") else CHOICES
