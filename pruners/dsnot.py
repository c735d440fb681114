"""DSnoT: exchange weights of a mask one for one, so that the expected output of each row comes back.

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
"""Exchanges in a row, at the most: the authors' default."""

ENOUGH = 0.1
"""A row whose expected error is at most so large is left as it is: the authors' default."""

CHUNK = 1 << 22
"""Weights that are looked at together."""


class InputMoments(InputNorms):
    """Means and variances of input channels, with their norms."""

    def _room(self, channels: int) -> int:
        return channels + 1  # sums of channels, the number of tokens

    def _besides(self, read: Read) -> Tensor:
        x = rows(read)
        tokens = x.new_tensor([len(x)]) if read.real is None else read.real.sum().to(x).reshape(1)
        return torch.cat([x.sum(dim=0), tokens])

    def moments(self, name: str, block: int) -> tuple[Tensor, Tensor]:
        """Of each input channel [i], float64: its sum over the tokens of a sequence, on average, and its variance."""
        start, i = self._offsets[name, block], len(self.norms(name, block))
        squares, sequences = self._sums[start : start + i], self._sums[start + i]
        sums, tokens = self._sums[start + i + 2 : start + 2 * i + 2], self._sums[start + 2 * i + 2].clamp(min=1)
        spread = squares / tokens - (sums / tokens).square()
        # A constant input has none: it is then the surest of all, so that its least value only must not be 0.
        least = torch.finfo(torch.float32).eps * squares / tokens + torch.finfo(torch.float32).tiny
        return sums / sequences.clamp(min=1), torch.maximum(spread, least)


@torch.no_grad()
def repair(pruner: Pruner, masks: Mapping[float, Mask]) -> dict[float, Mask]:
    """The masks with the weights of each layer exchanged within their rows."""
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
    """kept [o, i] after exchanges. weight [o, i]; of the inputs [i]: mean and variance float64, norm float32.

    A row's error is the expected output of its pruned weights, the sum of W_oi E[x_i]. While it is too large, the
    pruned weight comes back that reduces it most, for the variance of its input, and of the kept weights whose loss
    reduces it the one goes that Wanda scores lowest.
    """
    step = max(1, CHUNK // weight.shape[1])
    parts = zip(weight.split(step), kept.split(step), strict=True)
    return torch.cat([_exchanged(w, k.clone(), mean, variance, norm) for w, k in parts])


def _exchanged(weight: Tensor, kept: Tensor, mean: Tensor, variance: Tensor, norm: Tensor) -> Tensor:
    share, lines = weight.double() * mean, torch.arange(len(weight), device=weight.device)
    error = share.masked_fill(kept, 0).sum(dim=1)
    cost = (weight.abs().float() * norm).double()
    # For either sign of the error, negative first: what may come back, and what may go [2, o, k].
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
    """Columns [o, k] of the lowest of those allowed, ties by position; -1 where there are no more."""
    found = order.masked_fill(~allowed, torch.inf).argsort(dim=1, stable=True)[:, :STEPS]
    return found.masked_fill(~allowed.gather(1, found), -1)
