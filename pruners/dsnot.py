"""DSnoT: swap pruned and kept weights of a row one for one, until its expected output is restored.

Zhang et al., "Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs", ICLR 2024. No gradients and no
weight update: means and variances of the inputs of each layer, from one more pass over the data.
    python prune.py --pruner wanda --repair dsnot
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from calibration.layer_inputs import Read, rows
from calibration.statistics import InputNorms
from models.layers import blocks_of
from pruners.base import Pruner
from pruners.measuring import gather_apart
from sparsity.mask import Mask

STEPS = 50
"""Largest number of swaps in a row: the authors' default."""

ENOUGH = 0.1
"""Largest expected error of a row that is not repaired: the authors' default."""

CHUNK = 1 << 22
"""Weights processed at a time."""


class InputMoments(InputNorms):
    """Means and variances of input channels, with their norms."""

    def _room(self, channels: int) -> int:
        return channels + 1  # sums of channels, the number of tokens

    def _besides(self, read: Read) -> Tensor:
        x = rows(read)
        tokens = x.new_tensor([len(x)]) if read.real is None else read.real.sum().to(x).reshape(1)
        return torch.cat([x.sum(dim=0), tokens])

    def moments(self, name: str, block: int) -> tuple[Tensor, Tensor]:
        """Mean (of the sum over a sequence's tokens) and variance of each input channel [i], float64."""
        start, i = self._offsets[name, block], len(self.norms(name, block))
        squares, sequences = self._sums[start : start + i], self._sums[start + i]
        sums, tokens = self._sums[start + i + 2 : start + 2 * i + 2], self._sums[start + 2 * i + 2].clamp(min=1)
        spread = squares / tokens - (sums / tokens).square()
        # The variance divides a score below. That of a constant input is 0, so it gets the smallest value instead.
        least = torch.finfo(torch.float32).eps * squares / tokens + torch.finfo(torch.float32).tiny
        return sums / sequences.clamp(min=1), torch.maximum(spread, least)


@torch.no_grad()
def repair(pruner: Pruner, masks: Mapping[float, Mask]) -> dict[float, Mask]:
    """The masks after the swaps within the rows of each layer."""
    moments = InputMoments(pruner.model, pruner.layers)
    gather_apart(pruner, moments)
    found = {sparsity: pruner.mask_of({}) for sparsity in masks}
    for name, layer in pruner.layers.items():
        weight, form = pruner.matrix(name), pruner.forms[name]
        size = len(weight) // blocks_of(layer)
        for sparsity, mask in masks.items():
            kept = form.matrix(mask[name]).to(weight.device)
            parts = [
                exchanged(weight[block * size :][:size], kept[block * size :][:size], *of, moments.norms(name, block))
                for block in range(blocks_of(layer))
                for of in [moments.moments(name, block)]
            ]
            found[sparsity].add(name, form.parameter(torch.cat(parts)))
    return found


def exchanged(weight: Tensor, kept: Tensor, mean: Tensor, variance: Tensor, norm: Tensor) -> Tensor:
    """kept [o, i] after the swaps. weight [o, i]; of the inputs [i]: mean and variance float64, norm float32.

    A row's error is the expected output of its pruned weights, the sum of W_oi E[x_i]. While it is above `ENOUGH`, a
    swap reduces it. The pruned weight with the largest W_oi E[x_i] / Var[x_i] of the error's sign is kept again. In
    return the kept weight with the lowest Wanda score is pruned, among those of the opposite sign.
    """
    step = max(1, CHUNK // weight.shape[1])
    parts = zip(weight.split(step), kept.split(step), strict=True)
    return torch.cat([_exchanged(w, k.clone(), mean, variance, norm) for w, k in parts])


def _exchanged(weight: Tensor, kept: Tensor, mean: Tensor, variance: Tensor, norm: Tensor) -> Tensor:
    share, lines = weight.double() * mean, torch.arange(len(weight), device=weight.device)
    error = share.masked_fill(kept, 0).sum(dim=1)
    cost = (weight.abs().float() * norm).double()
    # Both orders are sorted once, for either sign of the error (negative first): regrown, pruned [2, o, k].
    back = torch.stack([_first(-s * share / variance, ~kept & (s * share > 0)) for s in (-1, 1)])
    gone = torch.stack([_first(cost, kept & (s * share < 0)) for s in (-1, 1)])
    place = torch.zeros(len(weight), 2, dtype=torch.long, device=weight.device)
    for _ in range(back.shape[2]):
        side = (error > 0).long()
        at = place[lines, side]
        comes, goes = back[side, lines, at], gone[side, lines, at]
        moved = lines[(error.abs() > ENOUGH) & (comes >= 0) & (goes >= 0)]
        if not len(moved):
            break
        comes, goes = comes[moved], goes[moved]
        kept[moved, comes], kept[moved, goes] = True, False
        error[moved] += share[moved, goes] - share[moved, comes]
        place[moved, side[moved]] += 1
    return kept


def _first(order: Tensor, allowed: Tensor) -> Tensor:
    """Columns [o, k] of the lowest allowed entries, ties by position; -1 where fewer are allowed."""
    found = order.masked_fill(~allowed, torch.inf).argsort(dim=1, stable=True)[:, :STEPS]
    return found.masked_fill(~allowed.gather(1, found), -1)
