"""TAMT: learn the mask itself; weights stay as they are, real numbers behind the mask are trained.

Liu et al., "Learning to Win Lottery Tickets in BERT Transfer via Task-agnostic Mask Training", NAACL 2022.
Forward with W * [|M| > tau], tau so that exactly the wanted share stays; the gradient passes straight through to M.
    python prune.py --pruner tamt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.preserve import moving_restored, weights_restored
from calibration.processes import Group
from calibration.progress import Progress
from calibration.statistics import MeanGradients
from console.errors import InputError
from console.progress import console
from models.base import Batch
from pruners.base import Pruner
from sparsity.mask import Mask
from sparsity.percents import percent
from sparsity.scores import Scores


@dataclass(frozen=True)
class TAMTOptions:
    """lr: AdamW's rate for the real masks, falling linearly over the batches; weight_decay: AdamW's."""

    lr: float = 5e-5
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise InputError(f"tamt's lr must be above 0, not {self.lr}")


class TAMT(Pruner):
    """Trained masks; one pass over the data a sparsity, in train mode."""

    uses_data = True
    uses_gradients = True
    uses_rounds = True
    Options = TAMTOptions

    @classmethod
    def plan(cls, options: TAMTOptions, num_batches: int, available: int, masks: int) -> tuple[int | None, int]:
        """Once through the data for each mask."""
        return available, available * masks

    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """Each sparsity trains its own real masks, from the same start and the same data."""
        steps = self.work.pairs or sum(1 for _ in self.work.batches)
        progress = Progress.load(self.work.checkpoint, self.mask_of)
        self.work.advance(progress.pairs_done(1, steps))
        for sparsity in sparsities:
            if sparsity in progress.finished:
                continue
            with weights_restored(self.layers), moving_restored(self.model):
                trained = TrainedMasks(self, sparsity, steps)
                start = 0
                if progress.sums is not None:
                    trained.restore(progress.sums)
                    start, progress.sums = progress.pairs, None
                self.model.train()
                try:
                    self.gather(trained, start, steps, also=progress.state())
                finally:
                    self.model.eval()
            progress.finished[sparsity] = trained.mask
            self.scores_by_sparsity[sparsity] = trained.scores()
        masks = {sparsity: progress.finished[sparsity] for sparsity in sparsities}
        if self.work.group.rank == 0:
            self._tell_of_magnitudes(masks, steps)
        return masks

    def _tell_of_magnitudes(self, masks: dict[float, Mask], steps: int) -> None:
        """Print a line where training moved no weight across the cut, since the numbers look the same either way."""
        start = self.cut_all(self.magnitudes(), list(masks))
        same = [f"{percent(sparsity)} %" for sparsity, mask in masks.items() if mask == start[sparsity]]
        if same:
            console.print(
                f"tamt: at {', '.join(same)} no bit differs from magnitude pruning, since {steps} steps at a learning "
                f"rate of {self.options.lr:g} are too few to move a weight across the cut: give more batches "
                "(--num_batches) or a larger `lr` (in the configuration under `methods: {tamt: {lr: ...}}`)"
            )

    def largest(self, real: Mapping[str, Tensor], sparsity: float) -> Mask:
        """The mask that keeps the largest |M|, at exactly the sparsity."""
        return self.cut(self.sizes(real), sparsity)

    def sizes(self, real: Mapping[str, Tensor]) -> Scores:
        """|M| of each layer as scores, computed when looked at."""
        return Scores(self.shapes, lambda name: self.to_host(name, self.forms[name].matrix(real[name].detach().abs())))


class TrainedMasks:
    """A statistic whose sums are steps of an optimizer: one a pair of batches."""

    def __init__(self, pruner: TAMT, sparsity: float, steps: int):
        self.follows_state = pruner.model.follows_state
        self._pruner, self._sparsity, self._steps = pruner, sparsity, steps
        # Steps of 1e-5 on numbers of 1e-2 vanish in half precision: masks and weights are at least float32 here.
        self._weights = {name: _at_least_float(layer.weight.detach()) for name, layer in pruner.layers.items()}
        self._gradients = MeanGradients(pruner.model, pruner.layers, pruner.work.group)
        start = pruner.largest({name: weight.abs() for name, weight in self._weights.items()}, sparsity)
        threshold = min(
            (float(w[start[name].to(w.device)].abs().min()) for name, w in self._weights.items() if start.kept(name)),
            default=1.0,
        )
        # 2 t where magnitude keeps a weight, else 0: the first cut gives magnitude's mask back, exactly.
        self._real = {
            name: nn.Parameter(start[name].to(weight) * max(2 * threshold, 1e-12))
            for name, weight in self._weights.items()
        }
        options = pruner.options
        self._optimizer = torch.optim.AdamW(self._real.values(), lr=options.lr, weight_decay=options.weight_decay)
        self._step = 0
        self._units = 0
        self.densities: list[float] = []
        self.mask = start
        self._apply()

    def update(self, batch: Batch) -> None:
        """Forward and backward with the masked weights."""
        self._gradients.update(batch)

    def pass_by(self, batch: Batch) -> None:
        """Queues and momentum copies move as at any batch."""
        self._pruner.model.pass_by(batch)

    def merge(self, group: Group, ranks: list[int]) -> None:
        """Once every side of a pair has been seen, one optimizer step on the mean gradient."""
        self._gradients.merge(group, ranks)
        self._units += len(ranks)
        if self._units < len(self._pruner.work.sides):
            return
        for name, real in self._real.items():
            # straight through: dL/dM = dL/d(masked W) W
            real.grad = self._gradients.mean(name).to(real.dtype) * self._weights[name]
        for parameter_group in self._optimizer.param_groups:
            parameter_group["lr"] = self._pruner.options.lr * max(0.0, 1 - self._step / self._steps)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._gradients.clear()
        self._units = 0
        self._step += 1
        self.mask = self._pruner.largest(self._real, self._sparsity)
        self._apply()

    @torch.no_grad()
    def _apply(self) -> None:
        self.densities.append(1 - self.mask.sparsity())
        for name, layer in self._pruner.layers.items():
            layer.weight.copy_(self._weights[name] * self.mask[name].to(layer.weight.device))

    def scores(self) -> Scores:
        """|M| of each layer, as they are now."""
        return Scores.of(dict(self._pruner.sizes(self._real)))

    def state(self) -> dict[str, Tensor]:
        """Real masks, the optimizer's moments and the step."""
        tensors = {f"real/{name}": real.detach() for name, real in self._real.items()}
        for name, real in self._real.items():
            moments = self._optimizer.state[real]
            tensors |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
        return tensors | {"step": torch.tensor(self._step)}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from a saved state."""
        self._step = int(state["step"])
        for name, real in self._real.items():
            real.copy_(state[f"real/{name}"])
            self._optimizer.state[real] = {
                "step": torch.tensor(float(self._step)),
                **{key: state[f"{key}/{name}"].to(real.device) for key in ("exp_avg", "exp_avg_sq")},
            }
        self.mask = self._pruner.largest(self._real, self._sparsity)
        self._apply()


def _at_least_float(weight: Tensor) -> Tensor:
    """A copy, of float32 where it is half precision."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
