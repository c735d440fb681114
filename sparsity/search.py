"""Search for a mask on the task's loss before finetuning under it: HYDRA, and VPNs without a prompt.

Sehwag et al., "HYDRA: Pruning Adversarially Robust Neural Networks", NeurIPS 2020; Jin et al., "Visual Prompting
Upgrades Neural Network Sparsification", AAAI 2025, who train a prompt along with the scores (tasks/prompts.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from console.progress import console
from console.words import agreed, counted
from models.base import Model
from models.parts import Units, units
from sparsity.gradual import protect, smallest
from sparsity.mask import Mask
from sparsity.percents import percent
from sparsity.progressive import Progressive, warn_of_few
from sparsity.sparsifiers import TrainedScores

TRAVEL = 0.6
"""Sum of the learning rates over a search, as in VPNs' published runs. It bounds how far a score moves; initial scores
are 0.04 to 0.3.
"""

MOVED = 0.01
"""A search in which a smaller share of the scores crosses the threshold was too short.

For very sparse masks the limit is a tenth of the scores that can cross it.
"""


class Search(Progressive):
    """A run of two stages (training/searching.py). The first trains a score for each weight while all weights are
    frozen; the weights with the largest |score| are kept. The second trains the weights under the resulting mask.

    The first stage also trains parameters that the checkpoint lacks (a new classifier) and the task's extra modules (a
    prompt). Without either, the gradient of a score is g w sign(score), with g that of the masked weight.
    """

    searching = True
    _units: Mapping[str, Units] = MappingProxyType({})  # by the matrix that reads them, for --structured
    _trained = 0  # steps of the second stage
    _threshold = float("nan")
    _found: Mapping[str, Tensor] = MappingProxyType({})

    def attach(self, model: Model) -> None:
        """Initial scores of all prunable weights, and the first mask; there is no given mask."""
        super().attach(model)
        if self.config.structured:
            self._units = {one.consumer: one for one in units(model) if one.consumer in self._pruned}
            self._pruned = list(self._units)
        layers = {name: self._layers[name] for name in self._pruned}
        start = {name: self._start(name, layer.weight.detach()) for name, layer in layers.items()}
        self._size = sum(score.numel() for score in start.values())
        self._check_least([score.numel() for score in start.values()])
        self._scores = TrainedScores(layers, start, self._cut, signed=True, pool=self._pool)
        self._first = self._chosen
        fresh = set(model.load_report.fresh) if model.load_report is not None else set()
        self._fresh = {id(p) for name, p in model.inner.named_parameters() if name in fresh}
        warn_of_few(
            Mask({name: ~bits for name, bits in self._found.items()}), "; --score_init magnitude starts elsewhere"
        )

    def _start(self, name: str, weight: Tensor) -> Tensor:
        """Scores of a layer at the start: one a weight, or the norm of the weights that read each unit."""
        if not self._units:
            return initial_score(weight, self.config.score_init)
        return initial_score(
            self._units[name].by_unit(weight.float()).norm(dim=1), self.config.score_init, fan_in(weight)
        )

    def _pool(self, name: str, gradient: Tensor) -> Tensor:
        """The sum over the weights that share a score, as those that read one unit do."""
        return self._units[name].by_unit(gradient).sum(dim=1) if self._units else gradient

    def _cut(self, scores: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        def sizes(name: str) -> Tensor:
            size = scores[name].detach().abs().float()
            if self._factors is not None:
                size = size * self._factors[name]
            protect(size, self._least(size.numel()))
            return size

        count = round(self._size * self._share)
        found = {name: sizes(name) for name in scores}  # computed once: a cut reads each score several times
        self._threshold, self._chosen = smallest(found.__getitem__, list(scores), self._size, count)
        self._found = self._chosen
        if self._units:
            shapes = {name: self._layers[name].weight.shape for name in self._chosen}
            self._found = {n: self._units[n].over_inputs(bits, shapes[n]) for n, bits in self._chosen.items()}
        return {name: ~bits for name, bits in self._found.items()}

    def _least(self, weights: int) -> int:
        """At least one unit per layer: an empty layer would block the signal."""
        return max(super()._least(weights), int(self.config.structured))

    # -- the first stage --------------------------------------------------------------------------------

    def started(self, steps: int, epoch: int) -> None:
        """Start of a stage: number of its steps, and of steps per epoch."""
        if not self.searching:
            self._trained = steps
            return
        self._steps = self._settled = steps
        if not self._history:
            self._remember(0, 1 - self._share)

    def begin_search(self, module: nn.Module, extra: Iterable[nn.Parameter]) -> None:
        """Freeze all of `module` except scored weights, new parameters and extra modules."""
        scored = {id(self._layers[name].weight) for name in self._pruned}
        learns = self._fresh | {id(parameter) for parameter in extra}
        self._frozen = [p for p in module.parameters() if p.requires_grad and id(p) not in scored | learns]
        self._learns = learns - scored
        for parameter in self._frozen:
            parameter.requires_grad_(False)

    def trained(self, module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        """The scores and what is trained with them; in the second stage the whole module."""
        if not self.searching:
            yield from module.named_parameters()
            return
        yield from ((f"scores.{name}", score) for name, score in self._scores.scores.items())
        yield from ((name, p) for name, p in module.named_parameters() if id(p) in self._learns)

    def end_search(self) -> Mask:
        """Fix the mask, unfreeze all weights, and warn if the search hardly changed the mask."""
        self.searching = False
        self._scores.scores = {}
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._hold()
        assert self.mask is not None
        moved = sum(int((bits ^ self._first[name]).sum()) for name, bits in self._chosen.items())
        kept = sum(int(bits.sum()) for bits in self._chosen.values())
        # At most twice the fewer of kept and pruned can differ: of very sparse masks less than 1 % of all.
        least = min(MOVED * self._size, 0.2 * min(kept, self._size - kept))
        if moved < least:
            rate, steps = self.rate(), counted(self._steps, "step")
            better = max(automatic_rate(self._steps), 2 * rate)
            console.print(
                f"note: {moved:,} of {self._size:,} scores crossed the threshold, less than "
                f"{percent(least / self._size)} %: {steps} at a score rate of {rate:g} "
                f"{agreed(self._steps, 'is')} too few; give more epochs, or --score_lr {better:.2g}"
            )
        return self.mask

    def rate(self) -> float:
        """Learning rate of the scores."""
        return self.config.score_lr or automatic_rate(self._steps)

    # -- both -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def after_backward(self) -> None:
        """First stage: turn gradients of weights into those of their scores. Second: zero those of pruned weights."""
        if not self.searching:
            assert self._lock is not None
            return self._lock.after_backward()
        return self._scores.after_backward()

    def after_update(self, step: int) -> None:
        """In the first stage: apply the mask of the new scores."""
        if self.searching:
            self._scores.after_update(step)
            self._remember(step, 1 - self._share)

    def _bits(self) -> Mapping[str, Tensor]:
        return self._found

    @property
    def history(self) -> list[dict[str, Any]]:
        """As for gradual pruning; then the second stage, in which the mask is fixed."""
        *before, last = self._history
        found = {**last, "step": self._steps, "begins": "training"}
        return [*before, found, {**last, "step": self._steps + self._trained}]

    def settled(self, step: int) -> bool:
        """The second stage has the mask from its first step on."""
        return not self.searching

    def log(self) -> dict[str, Any]:
        """Fields for a row of log.jsonl."""
        return {"remaining": round(1 - self._share, 6)} | ({"threshold": self._threshold} if self.searching else {})

    def state_dict(self) -> dict[str, Any]:
        """The scores; a run that resumes in the second stage first reads the last snapshot of the first."""
        return {"scores": self._scores.state_dict(), "history": self._history} if self.searching else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        if self.searching:
            self._history = list(state["history"])
            self._scores.load_state_dict(state["scores"])


def initial_score(weight: Tensor, kind: str, inputs: int | None = None) -> Tensor:
    """Scores of a layer's weights [o, i, ...] at the start, float32, with their signs. inputs: fan-in, unless theirs.

    `published`: sqrt(6 / fan-in) W / max |W|, which ranks layers of large fan-in low as a whole. `magnitude`: W /
    rms(W).
    """
    weight = weight.float()
    if kind == "magnitude":
        return weight / weight.square().mean().sqrt().clamp_min(1e-12)
    return weight * ((6 / (inputs or fan_in(weight))) ** 0.5 / weight.abs().max().clamp_min(1e-12))


def fan_in(weight: Tensor) -> int:
    """Number of inputs per output of weights [o, i, ...]."""
    return weight[0].numel()


def automatic_rate(steps: int) -> float:
    """The peak learning rate of scores for which a cosine schedule adds up to TRAVEL."""
    return 2 * TRAVEL / steps
