"""SparseGPT: prune a layer column by column, and compensate each error in the columns that follow.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023
(algorithm 1). Inputs are those of the dense model, from one pass over the data; layers are pruned independently.
    python prune.py --pruner sparsegpt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.hessians import InputHessians
from calibration.resume import no_checkpoint
from configs.options import option
from console.errors import InputError
from pruners.base import Pruner
from pruners.streaming import gather_streamed
from pruners.tokens import TokenOptions
from sparsity.allocation import allocation_named
from sparsity.groups import GroupCut
from sparsity.mask import Mask
from sparsity.scores import Scores
from sparsity.select import cut_layer
from storage.space import on_disk


@dataclass(frozen=True)
class SparseGPTOptions(TokenOptions):
    """SparseGPT's options, with its authors' defaults."""

    damping: float = option(0.01, "damping, as a share of the mean diagonal of H")
    block: int = option(128, "columns per block, whose mask is chosen together")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.damping > 0 or self.block < 1:
            raise InputError("sparsegpt's damping must be above 0 and its block at least 1")


class SparseGPT(Pruner):
    """Layer-wise reconstruction with weight update; every layer at the sparsity, or as the allocation says."""

    family = "inputs"
    takes_ids = False
    allocation = "layer"
    uses_data = True
    updates_weights = True
    Options = SparseGPTOptions

    def calibrate(self) -> None:
        """Gather the second moments of every layer's inputs; of a streamed model `masks` does it, block by block."""
        self.hessians = InputHessians(self.model, self.layers, share=self.options.share, choice=self.choice)
        self._latest: tuple[Tensor, Tensor] | None = None
        if self.model.streamed is None:
            self.gather_once(self.hessians)
            self.unreached = self.hessians.without_input()

    @torch.no_grad()
    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """All sparsities from the same moments; the masks carry the updated weights."""
        masks = {sparsity: self.mask_of({}) for sparsity in sparsities}
        if self.model.streamed is None:
            self._solve(list(self.layers), masks)
            return masks
        if allocation_named(self.allocation_name).compares:
            raise InputError(
                f"sparsegpt solves a streamed model block by block, and the allocation '{self.allocation_name}' "
                "compares all of them: choose layer, row or a pattern as 2:4, or leave out --stream"
            )

        checkpoint = self.work.checkpoint
        place = checkpoint.path.parent
        held = partial(on_disk, folder=place if checkpoint is not no_checkpoint and place.is_dir() else None)
        solved: list[list[str]] = []

        def add(parts: Mapping[float, Mask]) -> None:
            for sparsity, part in parts.items():
                for name in part:
                    masks[sparsity].add(name, part[name], torch.from_numpy(part.weights(name)), held)

        if (
            saved := checkpoint.load()
        ):  # solved layers are read back: inputs come from the dense model, so no later layer needs them
            solved, self.unreached = saved[1]["solved"], saved[1]["unreached"]
            for number, names in enumerate(solved):
                add({sparsity: Mask.load(checkpoint.parts / f"{number}_{sparsity}.safetensors") for sparsity in masks})
                self.hessians.forget(names)

        def done(names: list[str]) -> None:
            """Prune layers whose moments are complete, and free these: those of all blocks would not fit."""
            if not names or names in solved:
                return
            self.unreached += self.hessians.without_input(names)
            parts = {sparsity: self.mask_of({}) for sparsity in masks}
            self._solve(names, parts)
            self.hessians.forget(names)
            for sparsity, part in parts.items():
                checkpoint.keep(part.save, f"{len(solved)}_{sparsity}.safetensors")
            add(parts)
            solved.append(names)
            checkpoint.offer(lambda: ({}, {"solved": solved, "unreached": self.unreached}))

        gather_streamed(self, self.hessians, done=done)
        return masks

    def _solve(self, names: list[str], masks: Mapping[float, Mask]) -> None:
        """Add some layers to the masks of all sparsities, one by one where the allocation compares none."""
        for group in [names] if allocation_named(self.allocation_name).compares else [[name] for name in names]:
            obs = Scores.of({name: self.to_host(name, self._saliency(name)) for name in group})
            cuts = self.allocate(obs, self.magnitudes().only(group), self.modality, list(masks))
            for name in group:
                form, saliency = self.forms[name], obs[name]
                of_layer = dict(zip(masks, cuts(name, saliency), strict=True))
                for sparsity, (support, weight) in self._solved(name, saliency, of_layer).items():
                    masks[sparsity].add(name, form.parameter(support), form.parameter(weight))
        self._latest = None

    def _factor(self, hessian: Tensor) -> Tensor:
        """`inverse_factor`, once for a layer and its neighbours that read the same input (q, k and v)."""
        if self._latest is None or self._latest[0] is not hessian:
            self._latest = None  # before the next is made: of a wide layer one takes gigabytes
            self._latest = hessian, inverse_factor(hessian, self.options.damping)
        return self._latest[1]

    def _saliency(self, name: str) -> Tensor:
        """W^2 / [H^-1]_ii, the error of pruning a weight alone [o, i]: zero where its input is always zero."""
        weight, parts = self.matrix(name), []
        for rows, hessian in self.hessians.by_rows(name):
            factor = self._factor(hessian)
            costs = weight[rows].float().square() / torch.linalg.vector_norm(factor, dim=0).square().float()
            parts.append(costs.masked_fill(dead_inputs(hessian), 0))
        return torch.cat(parts)

    def _solved(self, name: str, obs: np.ndarray, cuts: Mapping[float, Any]) -> dict[float, tuple[Tensor, Tensor]]:
        """Support and updated weights [o, i] of a layer by sparsity; rows that read different inputs are solved
        separately.
        """
        weight, parts = self.matrix(name), self.hessians.by_rows(name)
        halves: dict[float, list[tuple[Tensor, Tensor]]] = {sparsity: [] for sparsity in cuts}
        for rows, hessian in parts:
            factor, dead = self._factor(hessian), dead_inputs(hessian)
            for sparsity, cut in cuts.items():
                pruned, group = budget(cut, obs, rows)
                solved = reconstruct(weight[rows], factor, pruned, self.options.block, group, dead)
                halves[sparsity].append(solved)
        return {sparsity: tuple(map(torch.cat, zip(*of, strict=True))) for sparsity, of in halves.items()}


def budget(cut: Any, obs: np.ndarray, rows: slice) -> tuple[int | np.ndarray, int | None]:
    """How many weights of some rows a cut prunes: in total, or [o] per row; and the size of an n:m group."""
    if isinstance(cut, GroupCut):
        if cut.width < obs.shape[1]:
            return cut.pruned * len(obs[rows]) // len(obs), cut.width
        return cut.pruned_by_group(len(obs))[rows], None
    whole = len(obs[rows]) == len(obs)
    return cut.below(obs) if whole else int(np.count_nonzero(~cut.keep(obs)[rows])), None


def dead_inputs(hessian: Tensor) -> Tensor:
    """Which inputs [i] are always zero; none in a layer that was never reached, since its inputs are all alike."""
    return (hessian.diagonal() == 0) & hessian.any()


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped H [i, i], float64.

    The damping is a share of the mean diagonal over inputs that are not always zero. The others get that mean: they are
    uncorrelated, and must not change the scale. For a layer that was never reached H is the identity, so that magnitude
    decides.
    """
    if not torch.isfinite(hessian).all():
        raise InputError("a layer has inputs that are NaN or infinite: check the weights, the data and --precision")
    h = hessian.to(torch.float64, copy=True)
    unused = h.diagonal() == 0
    mean = h.diagonal().sum() / (~unused).sum() if h.any() else torch.ones((), dtype=h.dtype, device=h.device)
    h.diagonal()[unused] = mean
    h.diagonal().add_(damping * mean)
    _invert_root(h)
    return h


def _invert_root(h: Tensor, leaf: int = 512) -> None:
    """Replace a symmetric H [i, i] by the upper F with F^T F = H^-1, in place: of 19,000 inputs H is 2.9 GB.

    With H = U U^T, F is U^-1. H is halved until a part has `leaf` rows, and all the rest are products, in strips that
    leave out the zeros of triangles: half of the operations of factorising, inverting and factorising again.
    """
    n = len(h)
    if n <= leaf:
        lower = torch.linalg.cholesky(h.flip(0, 1))  # of H read backwards, so that U comes out upper triangular
        one = torch.eye(n, dtype=h.dtype, device=h.device)
        h.copy_(torch.linalg.solve_triangular(lower, one, upper=False).flip(0, 1))
        return
    m = n // 2
    a, b, c = h[:m, :m], h[:m, m:], h[m:, m:]
    _invert_root(c, leaf)
    x = torch.empty_like(b)  # U's upper right quarter, B F_c^T
    for strip in _strips(n - m, leaf):
        x[:, strip] = b[:, strip.start :] @ c[strip, strip.start :].mT
    for strip in _strips(m, leaf):
        a[strip, strip.start :].addmm_(x[strip], x[strip.start :].mT, alpha=-1)  # what is below is never read
    _invert_root(a, leaf)
    for strip in _strips(n - m, leaf):
        b[:, strip] = x[:, : strip.stop] @ c[: strip.stop, strip]
    for strip in _strips(m, leaf):
        b[strip] = -(a[strip, strip.start :] @ b[strip.start :])
    h[m:, :m] = 0


def _strips(n: int, width: int) -> list[slice]:
    return [slice(start, min(n, start + width)) for start in range(0, n, width)]


def reconstruct(
    weight: Tensor,
    factor: Tensor,
    pruned: int | np.ndarray,
    block: int,
    group: int | None,
    dead: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Prune `pruned` weights of a layer [o, i] and update the rest.

    pruned: in total, or [o] per row. group: choose the mask within every `group` columns of a row (n:m), instead of
    over whole blocks. dead: inputs [i] that are always zero, whose weights are pruned first, without any error. Returns
    the support and the updated weights, zero where pruned.
    """
    w = weight.detach().double().clone()
    o, i = w.shape
    dead = torch.zeros(i, dtype=torch.bool, device=w.device) if dead is None else dead
    support, pruned = (
        _without_dead(dead, o, pruned) if group is None else (torch.ones_like(w, dtype=torch.bool), pruned)
    )
    live = (~dead).cumsum(0).tolist()
    step = block if group is None else max(group, block // group * group)  # a group must not cross a block
    for start in range(0, i, step):
        stop = min(i, start + step)
        inner = factor[start:stop, start:stop]
        errors = torch.zeros(o, stop - start, dtype=w.dtype, device=w.device)
        if group is None:
            # Each block prunes in proportion to its live columns; rounding the running sum makes the total exact.
            ends = (live[start - 1] if start else 0, live[stop - 1])
            before, after = (np.rint(np.multiply(pruned, end) / max(1, live[-1])).astype(int) for end in ends)
            scores = (w[:, start:stop] / inner.diagonal()).square().masked_fill(dead[start:stop], torch.inf)
            support[:, start:stop] &= _without_lowest(scores, after - before)
        for column in range(start, stop):
            at = column - start
            if group is not None and column % group == 0:
                here = slice(column, column + group)
                scores = (w[:, here] / inner.diagonal()[at : at + group]).square().masked_fill(dead[here], -1)
                support[:, here] = _without_lowest(scores, np.full(o, pruned // (o * i // group)))
            # Optimal Brain Surgeon: later weights of the row compensate the error of a pruned one, through H^-1.
            error = torch.where(support[:, column], 0, w[:, column]) / inner[at, at]
            w[:, column:stop].addr_(error, inner[at, at:], alpha=-1)
            errors[:, at] = error
        w[:, stop:].addmm_(errors, factor[start:stop, stop:], alpha=-1)  # lazily, once per block: one large product
    w[~support] = 0
    return support, w


def _without_dead(dead: Tensor, rows: int, pruned: int | np.ndarray) -> tuple[Tensor, int | np.ndarray]:
    """The support after pruning weights of dead inputs, by position; and how many are still to be pruned."""
    position = dead.cumsum(0).expand(rows, -1).clone()  # rank of each weight among the dead ones, from 1
    if np.ndim(pruned) == 0:
        position += torch.arange(rows, device=dead.device)[:, None] * int(dead.sum())
        gone = dead & (position <= int(pruned))
        return ~gone, int(pruned) - int(gone.sum())
    gone = dead & (position <= torch.from_numpy(np.asarray(pruned)).to(dead.device)[:, None])
    return ~gone, pruned - gone.sum(dim=1).cpu().numpy()


def _without_lowest(scores: Tensor, pruned: np.ndarray) -> Tensor:
    """Support [o, m] without the `pruned` lowest scores: in total, or [o] per row; ties are broken by position."""
    values = np.ascontiguousarray(scores.float().cpu().numpy())
    if np.ndim(pruned) == 0:
        kept = cut_layer(values, [int(pruned)])[0].keep(values)
    else:
        order = np.argsort(values, axis=1, kind="stable")
        kept = np.empty(values.shape, dtype=bool)
        np.put_along_axis(kept, order, np.arange(values.shape[1]) >= pruned[:, None], axis=1)
    return torch.from_numpy(kept).to(scores.device)
