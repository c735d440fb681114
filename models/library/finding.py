"""Which weights of any module can be pruned; the other weight matrices, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from console.errors import InputError
from models.layers import READS, AttentionWeight, PrunableLayer, is_conv1d, is_table, multiplies_as

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types of weights that can be scored; integers and floats of eight bits are storage that a module decodes itself."""

RECOMPUTED = {
    "weight_g": "weight_norm: torch.nn.utils.remove_weight_norm(module)",
    "weight_u": "spectral_norm: torch.nn.utils.remove_spectral_norm(module)",
    "weight_mask": "torch.nn.utils.prune: torch.nn.utils.prune.remove(module, 'weight')",
}
"""A tensor next to a weight that is recomputed in each pass -> what computes it, and the call that undoes it."""


class Skipped(NamedTuple):
    """Weights that are not pruned. name: of the module or parameter; weights: how many."""

    name: str
    reason: str
    weights: int

    def __repr__(self) -> str:
        return f"{self.name}: {self.reason} ({self.weights:,} weights)"


def find_layers(
    module: nn.Module, exclude: Callable[[str], bool], conv: bool
) -> tuple[dict[str, PrunableLayer], list[Skipped]]:
    """Prunable layers by the name of their parameter, each tied one once; and all other weights in matrices.

    exclude: whether a weight, by its `short_name`, is left out of both. conv: whether convolutions without groups are
    pruned. InputError for a layer that has no weights yet.
    """
    layers: dict[str, PrunableLayer] = {}
    skipped: list[Skipped] = []
    settled = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding | nn.EmbeddingBag)}
    embeddings = frozenset(settled)
    adapters = set(_adapters(module))
    holders = _holders(module)
    for path, part in module.named_modules():
        if any(isinstance(parameter, UninitializedParameter) for parameter in part._parameters.values()):
            if exclude(path):
                continue
            raise InputError(
                f"'{path}' is a {type(part).__name__}, which has no weights before its first pass: call the module "
                "once on a batch, then wrap it"
            )
        for leaf, parameter in _matrices(part):
            name = f"{path}.{leaf}" if path else leaf
            if exclude(short_name(name)):
                continue
            tied = id(parameter) in embeddings and not isinstance(part, nn.Embedding | nn.EmbeddingBag)
            if id(parameter) in settled and not tied:
                continue
            settled.add(id(parameter))
            reason = "its weight is an embedding's" if tied else _obstacle(part, leaf, parameter, conv)
            reason = reason or _shared_otherwise(holders.get(id(parameter), []))
            if id(part) in adapters or any(step.startswith("lora_") for step in name.split(".")):
                reason = "an adapter next to its base layer"
            if reason is None:
                layers[name] = part if leaf == "weight" else AttentionWeight(part, leaf)
            else:
                skipped.append(Skipped(name, reason, parameter.numel()))
    return layers, skipped


def _holders(module: nn.Module) -> dict[int, list[tuple[str, nn.Module, str]]]:
    """id of a parameter -> path, module and leaf of each that holds it."""
    found: dict[int, list[tuple[str, nn.Module, str]]] = {}
    for path, part in module.named_modules():
        for leaf, parameter in part._parameters.items():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((path, part, leaf))
    return found


def _shared_otherwise(holders: list[tuple[str, nn.Module, str]]) -> str | None:
    """Why a weight that modules share cannot be pruned: its inputs could not all be seen, or not be added up."""
    for path, part, leaf in holders[1:]:
        _, first, first_leaf = holders[0]
        if multiplies_as(part, leaf) != multiplies_as(first, first_leaf):
            return f"{f'{path}.{leaf}' if path else leaf} of a {type(part).__name__} shares it and uses it another way"
    return None


def short_name(name: str) -> str:
    """A weight's name for `exclude`, without the word weight: `layer.0.fc1`, `attn.in_proj`."""
    return name.removesuffix(".weight").removesuffix("_weight")


def skipped_lines(skipped: Iterable[Skipped]) -> Iterator[str]:
    """A line for each reason: how many weights, and the first names."""
    groups: dict[str, list[Skipped]] = {}
    for one in skipped:
        groups.setdefault(one.reason, []).append(one)
    for reason, found in groups.items():
        names = ", ".join(one.name for one in found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        yield f"{sum(one.weights for one in found):,} weights of {names}: {reason}"


def _matrices(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A module's own tensors that multiply inputs."""
    for leaf, parameter in part._parameters.items():
        if parameter is None or isinstance(parameter, UninitializedParameter):
            continue
        if parameter.dim() > 1 and not is_table(part, leaf, parameter):
            yield leaf, parameter
    for leaf, buffer in part._buffers.items():
        if buffer is not None and buffer.dim() == 2 and not buffer.is_floating_point() and "weight" in leaf:
            yield leaf, buffer  # of quantised layers


def _obstacle(part: nn.Module, leaf: str, parameter: Tensor, conv: bool) -> str | None:
    """Why a weight cannot be pruned; None when it can."""
    if isinstance(part, parametrize.ParametrizationList):
        return (
            "its weight is recomputed in each pass by a parametrization: torch.nn.utils.parametrize."
            "remove_parametrizations(module, name) first"
        )
    if leaf in part._buffers:
        return _of_type(parameter)
    siblings = (*part._parameters, *part._buffers)
    if anew := next(
        (what for mark, what in RECOMPUTED.items() if mark in siblings and leaf.startswith("weight_")), None
    ):
        return f"its weight is recomputed in each pass by {anew} first"
    if isinstance(part, nn.MultiheadAttention) and leaf in READS:
        return _of_type(parameter)
    if isinstance(part, nn.Conv2d) and leaf == "weight":
        if part.groups > 1:
            return "a convolution in groups"
        return _of_type(parameter) if conv else "a convolution, which conv=True (--conv) prunes"
    if leaf == "weight" and (isinstance(part, nn.Linear) or is_conv1d(part)):
        return _of_type(parameter)
    return f"a weight of {type(part).__name__}, which is no linear layer"


def _of_type(parameter: Tensor) -> str | None:
    if parameter.dtype in FLOATS:
        return None
    return f"its weights are stored as {str(parameter.dtype).removeprefix('torch.')}: prune before they are quantised"


def _adapters(module: nn.Module) -> Iterator[int]:
    """Modules next to a `base_layer`, as LoRA's matrices are in peft: small, and trained after pruning."""
    for part in module.modules():
        if "base_layer" in part._modules:
            yield id(part)
            for name, child in part._modules.items():
                if name != "base_layer" and child is not None:
                    yield from map(id, child.modules())
