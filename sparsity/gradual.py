"""Gradual pruning: importances from gradients, a cubic schedule of the density, and a new mask every few steps.

PLATON (Zhang et al., ICML 2022), Taylor scores (Molchanov et al., 2019) and magnitudes, under one cubic schedule (Zhu
and Gupta, 2017). A mask only zeroes weights: the next step may change them again, so that pruned weights can return.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from console.errors import InputError, nearest
from sparsity.progressive_config import METHODS

SMALL = 1 << 16  # scores that are sorted rather than sampled


class Gradual:
    """Scores of parameters during training, and the masks that they give.

    After step t, with gradients g of the weights before it and weights w after it, a = |w g| (PLATON eq. 6). Within a
    window of `interval` steps I is the mean of a; at its end E and U, the running means of I and of |I - E|, move on
    (eqs. 7, 8), and the score is E U (eq. 9); with beta2 = 1 it is E alone, with beta2 = 0 it is E |I - E|. Taylor
    scores are a of this step, magnitudes |w|.
    """

    def __init__(
        self,
        method: str,
        parameters: Mapping[str, nn.Parameter],
        total: int,
        sparsity: float,
        dense_steps: int,
        final_steps: int,
        interval: int = 10,
        layer_weights: Mapping[str, float] | None = None,
        count: Callable[[int, float], int] | None = None,
        *,
        betas: tuple[float, float] = (0.85, 0.95),
        epoch: int = 0,
        min_kept: Callable[[int], int] = lambda weights: 0,
        pruned: Mapping[str, Tensor] | None = None,
        may_overflow: bool = False,
    ):
        """parameters: by name, in the order in which equal scores are pruned.

        total: steps of the run, of which the first `dense_steps` prune nothing and the last `final_steps` have a mask
        each. sparsity: at the end. layer_weights: factors on scores, by name. count(P, r): how many of P weights are
        pruned at density r (default: round(P (1 - r))). epoch: steps of an epoch, which ends with a mask. min_kept:
        weights of a parameter -> how many of them are kept at least. pruned: weights that are pruned from the start, by
        name. may_overflow: leave out steps whose gradients are not finite, as the loss scaler of half precision does.
        InputError for an unknown method, and for phases that are longer than the run or leave no step between them.
        """
        if method not in METHODS:
            raise InputError(f"unknown method '{method}'{nearest(method, METHODS)}: choose one of {', '.join(METHODS)}")
        if not dense_steps >= 0 or not final_steps > 0 or dense_steps + final_steps > total:
            raise InputError(
                f"of {total} steps the first {dense_steps} cannot be dense and the last {final_steps} at the final "
                "sparsity: shorten the phases, or train for longer"
            )
        if method == "platon" and total < (first := max(interval, 2)):
            raise InputError(
                f"platon has its first importances after {first} steps, but the run has {total}: lower interval, or "
                "train for longer"
            )
        self.method, self.parameters, self.sparsity = method, dict(parameters), sparsity
        self._total, self._dense, self._final = total, dense_steps, final_steps
        self._interval, self._epoch, self._betas = interval, epoch, betas
        self._weights = layer_weights or {}
        self._count = count or (lambda weights, remaining: round(weights * (1 - remaining)))
        self._min_kept, self._gone, self._may_overflow = min_kept, pruned or {}, may_overflow
        self._size = sum(parameter.numel() for parameter in parameters.values())
        kinds = ("importance", "uncertainty", "window") if method == "platon" else ()
        self.states: dict[str, dict[str, Tensor]] = {
            kind: {name: torch.zeros_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
            for kind in kinds
        }
        self._in_window = 1  # the zeros that the first window starts from count as a step of it
        self._seen, self._moved = 0, 0  # steps, and updates of E
        self.mask: dict[str, Tensor] = {}  # True where the last mask prunes
        self.threshold, self.revived = float("nan"), 0

    def remaining(self, step: int) -> float:
        """The density r of a mask after `step`."""
        final = 1 - self.sparsity
        if step <= self._dense:
            return 1.0
        if step > self._total - self._final:
            return final
        done = (step - self._dense) / (self._total - self._dense - self._final)
        return final + (1 - final) * (1 - done) ** 3

    def due(self, step: int) -> bool:
        """Whether weights are pruned after `step`: at every step of the last phase, before that at the end of windows
        and epochs.
        """
        if step <= self._dense:
            return False
        ends = step % self._interval == 0 or (self._epoch > 0 and step % self._epoch == 0)
        return step > self._total - self._final or ends

    @torch.no_grad()
    def update(self, step: int) -> bool:
        """After the optimizer's step number `step`, from 1: update importances, and prune when a mask is due.

        Returns whether it pruned.
        """
        if self.method == "platon" and not (self._may_overflow and self._overflowed()):
            self._observe(ends=step % self._interval == 0)
        # Before E has moved off zero all scores are equal, and position would decide what is pruned.
        if not self.due(step) or (self.method == "platon" and not self._moved):
            return False
        if self.method == "taylor" and self._may_overflow and self._overflowed():
            return False  # the optimizer has left this step out, too: the last mask stays
        self._prune(self.remaining(step))
        return True

    def _overflowed(self) -> bool:
        return any(p.grad is not None and not p.grad.isfinite().all() for p in self.parameters.values())

    def _observe(self, ends: bool) -> None:
        beta1, beta2 = self._betas
        for name, parameter in self.parameters.items():
            window = self.states["window"][name]
            now = self._sensitivity(parameter)
            if ends:
                # The window averages out the noise of single batches before the two running means (eqs. 7, 8).
                mean, spread = self.states["importance"][name], self.states["uncertainty"][name]
                mean.mul_(beta1).add_(window, alpha=1 - beta1)
                spread.mul_(beta2).add_((window - mean).abs_(), alpha=1 - beta2)
                window.copy_(now)
            else:
                window.mul_(self._in_window).add_(now).div_(self._in_window + 1)
        self._moved += ends and self._seen > 0
        self._seen += 1
        self._in_window = 1 if ends else self._in_window + 1

    @staticmethod
    def _sensitivity(parameter: nn.Parameter) -> Tensor:
        """a = |w g|, float32; zeros where there is no gradient."""
        if parameter.grad is None:
            return torch.zeros_like(parameter, dtype=torch.float32)
        return (parameter.float() * parameter.grad.float()).abs_()

    def score(self, name: str) -> Tensor:
        """The scores of a parameter, float32; weights pruned from the start are below all others."""
        parameter = self.parameters[name]
        if self.method == "magnitude":
            score = parameter.abs().float()
        elif self.method == "taylor":
            score = self._sensitivity(parameter)
        elif self._betas[1] == 1:
            score = self.states["importance"][name].clone()
        elif self._betas[1] == 0:
            mean = self.states["importance"][name]
            score = (self.states["window"][name] - mean).abs_().mul_(mean)
        else:
            score = self.states["importance"][name] * self.states["uncertainty"][name]
        if name in self._weights:
            score *= self._weights[name]
        protect(score, self._min_kept(score.numel()))
        if name in self._gone:
            score.masked_fill_(self._gone[name], -1.0)
        return score

    def _prune(self, remaining: float) -> None:
        count = self._count(self._size, remaining)
        if self._gone:
            count = max(count, sum(int(gone.sum()) for gone in self._gone.values()))
        before, self.mask = self.mask, {}
        self.threshold = float("nan")
        if count > 0:
            self.threshold, self.mask = smallest(self.score, list(self.parameters), self._size, count)
        self.revived = sum(int((bits & ~self.mask[name]).sum()) for name, bits in before.items()) if self.mask else 0
        for name, bits in self.mask.items():
            self.parameters[name].masked_fill_(bits, 0)  # the next step may move them again

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: states, the window's length, the last mask."""
        return {
            "states": self.states,
            "in_window": self._in_window,
            "moved": self._moved,
            "seen": self._seen,
            "mask": self.mask,
            "threshold": self.threshold,
            "revived": self.revived,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        for kind, tensors in state["states"].items():
            for name, tensor in tensors.items():
                self.states[kind][name].copy_(tensor)
        self._in_window, self._moved, self._seen = state["in_window"], state["moved"], state["seen"]
        self.mask = {name: bits.to(self.parameters[name].device) for name, bits in state["mask"].items()}
        self.threshold, self.revived = state["threshold"], state["revived"]


def protect(score: Tensor, count: int) -> None:
    """Put a layer's `count` largest scores above all others, in place."""
    if count:
        score.view(-1)[score.flatten().topk(min(count, score.numel())).indices] = torch.inf


def smallest(
    score: Callable[[str], Tensor], names: list[str], total: int, count: int
) -> tuple[float, dict[str, Tensor]]:
    """The value of the `count`-th smallest of `total` scores, and where the `count` smallest lie, True, by name.

    Ties are broken by position, in the order of `names` and then of elements. Scores are computed layer by layer on
    their device and never held together: a sample brackets the value, and the scores inside are sorted.
    """
    if count >= total:
        return float("inf"), {name: torch.ones_like(score(name), dtype=torch.bool) for name in names}
    value = _kth(score, names, total, count)
    found = {name: score(name) < value for name in names}
    ties = count - sum(int(bits.sum()) for bits in found.values())
    for name in names:
        if ties <= 0:
            break
        equal = (score(name) == value).flatten().nonzero().flatten()[:ties]
        found[name].view(-1)[equal] = True
        ties -= len(equal)
    return float(value), found


def _kth(score: Callable[[str], Tensor], names: list[str], total: int, count: int) -> Tensor:
    """The `count`-th smallest score, a tensor of one number."""
    step = max(1, round(total ** (1 / 3)) // 4) | 1 if total > SMALL else 1  # odd, so that samples fall on all columns
    sample = torch.cat([score(name).flatten()[::step] for name in names]).sort().values
    if step == 1:
        return sample[count - 1]
    rank, slack = count / total * len(sample), 3 * len(sample) ** 0.5  # six standard deviations at the median
    low = sample[max(0, int(rank - slack))]
    high = sample[min(len(sample) - 1, int(rank + slack))]
    inside, below = [], 0
    for name in names:
        scores = score(name).flatten()
        below += int((scores < low).sum())
        inside.append(scores[(scores >= low) & (scores <= high)])
    between = torch.cat(inside)
    if not below < count <= below + len(between):  # rare: the bracket missed the value
        between, below = torch.cat([score(name).flatten() for name in names]), 0
    return between.kthvalue(count - below).values
