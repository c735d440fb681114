"""Build a model without a second copy in memory: first on the meta device, then filled from a file or at random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from models.common.checkpoint import load_state, read_state

if TYPE_CHECKING:
    from models.base import Model


def build(
    model_class: type[Model],
    config: Any,
    weights: Path | None,
    seed: int = 0,
    change: Callable[[Model], Model] = lambda model: model,
) -> Model:
    """A `model_class(config)` on the CPU, filled from the checkpoint `weights` or, without one, at random.

    The model is made on torch's meta device, so that a file's tensors become its parameters without a second copy.
    change: what happens to it before it is filled. `model.load_report` says what happened to the file's keys (None for
    random weights).
    """
    with torch.device("meta"):
        model = model_class(config)
    model = change(model)
    fresh: list[str] = []
    if weights is None:
        model.to_empty(device="cpu")
        model.tie()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.reset()
    else:
        rules = model_class.key_rules
        state, report = read_state(weights, rules)
        model.load_report = load_state(model, state, rules, report)
        model.tie()
        fresh = model.load_report.fresh
    model.loaded(fresh)
    return model


@torch.no_grad()
def reset_weights(model: nn.Module) -> None:
    """BERT's initialisation: normal weights and embeddings of deviation 0.02, zero biases, unit norms."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            module.weight.normal_(std=0.02)
        elif isinstance(module, nn.LayerNorm):
            module.weight.fill_(1)
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
