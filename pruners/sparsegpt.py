"""SparseGPT: prune a layer column by column, each time moving what was lost into the columns still to come.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023
(algorithm 1). Inputs are those of the dense model, from one pass over the data; layers are pruned independently.
    python prune.py --pruner sparsegpt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from console.errors import InputError
from pruners.base import Pruner
from pruners.groups import GroupCut
from pruners.hessians import InputHessians
from pruners.layer_inputs import width
from pruners.mask import Mask
from pruners.scores import Scores
from pruners.select import cut_layer


@dataclass(frozen=True)
class SparseGPTOptions:
    """damping: share of H's mean diagonal added to it. block: columns whose mask is chosen together."""

    damping: float = 0.01
    block: int = 128

    def __post_init__(self) -> None:
        if not self.damping > 0 or self.block < 1:
            raise InputError("sparsegpt's damping must be above 0 and its block at least 1")


class SparseGPT(Pruner):
    """Layer-wise reconstruction with weight update; every layer at the sparsity, or as the allocation says."""

    allocation = "layer"
    uses_data = True
    Options = SparseGPTOptions

    def calibrate(self) -> None:
        """Gather the second moments of every layer's inputs."""
        self.hessians = InputHessians(self.model, self.layers)
        self.gather_once(self.hessians)

    @torch.no_grad()
    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """All sparsities from the same moments; the masks carry the updated weights."""
        obs = Scores.of({name: self.to_host(name, self._saliency(name)) for name in self.layers})
        cuts = self.allocate(obs, self.magnitudes(), self.modality, sparsities)
        masks = {sparsity: Mask({}, self.modality) for sparsity in sparsities}
        for name, layer in self.layers.items():
            factor = inverse_factor(self.hessians.of(name), self.options.damping)
            for sparsity in sparsities:
                cut = cuts[sparsity][name]
                lost = cut.below(obs[name])
                group = cut.width if isinstance(cut, GroupCut) and cut.width < width(layer) else None
                support, weight = reconstruct(self.matrix(name), factor, lost, self.options.block, group)
                shape = layer.weight.shape
                masks[sparsity].add(name, support.reshape(shape), weight.reshape(shape))
        return masks

    def _saliency(self, name: str) -> Tensor:
        """W^2 / [H^-1]_ii, what removing a weight alone would cost."""
        factor = inverse_factor(self.hessians.of(name), self.options.damping)
        return self.matrix(name).float().square() / factor.square().sum(dim=0).float()


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped H [i, i], float64. Inputs that are always zero count as 1."""
    if not torch.isfinite(hessian).all():
        raise InputError("a layer has inputs that are NaN or infinite: check the weights, the data and --precision")
    h = hessian.double().clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1
    h.diagonal().add_(damping * h.diagonal().mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def reconstruct(weight: Tensor, factor: Tensor, lost: int, block: int, group: int | None) -> tuple[Tensor, Tensor]:
    """Prune `lost` weights of a layer [o, i] and update the rest.

    group: choose the mask within every `group` columns of a row (n:m), instead of over whole blocks. Returns the
    support and the updated weights, zero where pruned.
    """
    w = weight.detach().double().clone()
    o, i = w.shape
    support = torch.ones(o, i, dtype=torch.bool, device=w.device)
    step = block if group is None else max(group, block // group * group)  # groups lie wholly in a block
    for start in range(0, i, step):
        stop = min(i, start + step)
        inner = factor[start:stop, start:stop]
        errors = torch.zeros(o, stop - start, dtype=w.dtype, device=w.device)
        if group is None:
            # The blocks' counts add up to `lost` exactly.
            count = round(lost * stop / i) - round(lost * start / i)
            support[:, start:stop] = _lowest(w[:, start:stop], inner.diagonal(), count)
        for column in range(start, stop):
            at = column - start
            if group is not None and column % group == 0:
                here = slice(column, column + group)
                diagonal = inner.diagonal()[at : at + group]
                gone = lost // (o * i // group)
                scores = (w[:, here] / diagonal).square().float().cpu().numpy()
                kept = GroupCut(gone * o, group).keep(scores)
                support[:, here] = torch.from_numpy(kept).to(w.device)
            error = torch.where(support[:, column], 0, w[:, column]) / inner[at, at]
            w[:, column:stop] -= error[:, None] * inner[at, at:]
            errors[:, at] = error
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    w[~support] = 0
    return support, w


def _lowest(w: Tensor, diagonal: Tensor, count: int) -> Tensor:
    """Support of a block without its `count` lowest saliencies."""
    scores = (w / diagonal).square().float().cpu().numpy()
    kept = cut_layer(np.ascontiguousarray(scores), [count])[0].keep(scores)
    return torch.from_numpy(kept).to(w.device)
