"""TAMT: train the mask: weights are frozen, and a real-valued mask M is trained on the pretraining loss.

Liu et al., "Learning to Win Lottery Tickets in BERT Transfer via Task-agnostic Mask Training", NAACL 2022.
The forward pass uses W * [|M| > tau], with tau at exactly the sparsity; the gradient passes straight through to M.
    python prune.py --pruner tamt
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.processes import Group
from calibration.progress import Progress
from calibration.statistics import MeanGradients
from configs.options import option
from console.errors import InputError
from console.progress import console
from console.words import agreed, counted
from models.base import Batch
from pruners.base import Rounds
from sparsity.mask import Mask
from sparsity.percents import percent
from sparsity.scores import Scores
from sparsity.sparsifiers import TrainedScores
from storage.tensors import read_safetensors, write_safetensors


@dataclass(frozen=True)
class TAMTOptions:
    """AdamW's options, for the real-valued masks."""

    lr: float = option(5e-5, "learning rate of the real-valued masks, which decays linearly over the batches")
    weight_decay: float = option(0.01, "weight decay of the real-valued masks")

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise InputError(f"tamt's lr must be above 0, not {self.lr}")


class TAMT(Rounds):
    """Trained masks; one pass over the data per sparsity, in train mode."""

    Options = TAMTOptions

    @classmethod
    def plan(cls, options: TAMTOptions, num_batches: int, available: int, masks: int) -> tuple[int | None, int]:
        """Once through the data for each mask."""
        return available, available * masks

    def masks(self, sparsities: Sequence[float]) -> dict[float, Mask]:
        """Each sparsity trains its own real-valued masks, from the same start and the same data."""
        work, sides = self.work, len(self.work.sides)
        if sides % work.group.size:
            raise InputError(
                f"tamt takes a step after a batch of each side, which {work.group.size} processes cannot share: "
                f"use --devices {' or '.join(str(n) for n in range(1, sides + 1) if sides % n == 0)}"
            )
        work.pairs = work.pairs or sum(1 for _ in work.batches)
        masks = super().masks(sparsities)
        for sparsity in masks:
            if sparsity not in self.scores_by_sparsity:  # finished before an interruption
                saved, _ = read_safetensors(work.checkpoint.parts / f"{sparsity}.safetensors")
                self.scores_by_sparsity[sparsity] = Scores.of({name: saved[name].numpy() for name in self.layers})
        if work.group.rank == 0:
            self._warn_of_magnitudes(masks, work.pairs)
        return masks

    def rounds(self, sparsity: float, progress: Progress) -> Mask:
        """One round: a pass over the data, an optimizer step for each pair of batches."""
        training = Training(self, self._start(sparsity), self.work.pairs or 0)
        start = 0
        if progress.sums is not None:
            training.restore(progress.sums)
            start, progress.sums = progress.pairs, None
        self.model.train()
        try:
            self.gather(training, start, self.work.pairs, also=progress.state())
        finally:
            self.model.eval()
        known = self.scores_by_sparsity
        # Pruning may cut a layer off at one sparsity: unreached are the layers that no sparsity reached.
        self.unreached = [name for name in training.unreached if not known or name in self.unreached]
        scores = training.scores
        arrays = dict(self._magnitude(scores.scores))
        self.scores_by_sparsity[sparsity] = Scores.of(arrays)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        self.work.checkpoint.keep(lambda path: write_safetensors(path, tensors, {}), f"{sparsity}.safetensors")
        assert scores.mask is not None
        return scores.mask

    def _start(self, sparsity: float) -> TrainedScores:
        """Initial real-valued masks: 2 t where magnitude keeps a weight, else 0, with t the smallest kept |W|."""
        mask = self.cut(self.magnitudes(), sparsity)
        weights = {name: layer.weight.detach() for name, layer in self.layers.items()}
        smallest = min(
            (float(w[mask[n].to(w.device)].abs().min()) for n, w in weights.items() if mask.kept(n)), default=1
        )
        # Equal values on both sides of the threshold leave the order to training: only gradients change the mask.
        real = {name: mask[name].to(torch.float32) * max(2 * smallest, 1e-12) for name in weights}
        return TrainedScores(self.layers, real, lambda scores: self.cut(self._magnitude(scores), sparsity))

    def _magnitude(self, real: Mapping[str, Tensor]) -> Scores:
        """|M| of each layer, computed on access."""
        return Scores(self.shapes, lambda name: self.to_host(name, self.forms[name].matrix(real[name].detach().abs())))

    def _warn_of_magnitudes(self, masks: dict[float, Mask], steps: int) -> None:
        """Warn if training changed no bit: the sparsities alone would not show it."""
        start = self.cut_all(self.magnitudes(), list(masks))
        same = [f"{percent(sparsity)} %" for sparsity, mask in masks.items() if mask == start[sparsity]]
        if same:
            few = f"{counted(steps, 'step')} at a learning rate of {self.options.lr:g} {agreed(steps, 'is')} too few"
            console.print(
                f"tamt: at {', '.join(same)} the mask equals magnitude pruning, since {few} to move a weight across "
                "the threshold: give more batches (--num_batches) or a larger --lr"
            )


class Training:
    """A statistic that takes an optimizer step after each step of the data, instead of adding up."""

    def __init__(self, pruner: TAMT, scores: TrainedScores, steps: int):
        self.follows_state = pruner.model.follows_state
        self.scores = scores
        self._pruner, self._steps = pruner, steps
        self._gradients = MeanGradients(pruner.model, pruner.layers, pruner.work.group)
        options = pruner.options
        parameters = scores.scores.values()
        self._optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay)
        self._step = 0
        self._units = 0
        self.unreached = list(pruner.layers)  # not reached by any step so far

    def update(self, batch: Batch) -> None:
        """Forward and backward with the masked weights."""
        self._gradients.update(batch)

    def pass_by(self, batch: Batch) -> None:
        """Update queues and momentum copies as for any batch."""
        self._pruner.model.pass_by(batch)

    def merge(self, group: Group, ranks: list[int]) -> None:
        """One optimizer step on the mean gradient, once every side of a pair has been seen."""
        self._gradients.merge(group, ranks)
        self._units += len(ranks)
        if self._units < len(self._pruner.work.sides):
            return
        self.unreached = self._gradients.all_zero(self.unreached)
        self.scores.take(self._gradients.mean)
        for parameter_group in self._optimizer.param_groups:
            # linear decay to zero, as the paper's AdamW
            parameter_group["lr"] = self._pruner.options.lr * max(0.0, 1 - self._step / self._steps)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._gradients.clear()
        self._units = 0
        self._step += 1
        self.scores.after_update(self._step)

    def state(self) -> dict[str, Tensor]:
        """Real-valued masks, the optimizer's moments and the step."""
        tensors = {f"real/{name}": real.detach() for name, real in self.scores.scores.items()}
        for name, real in self.scores.scores.items():
            moments = self._optimizer.state[real]
            tensors |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
        return tensors | {"step": torch.tensor(self._step)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Resume from a saved state."""
        self._step = int(state["step"])
        self.unreached = []  # earlier steps are unknown
        for name, real in self.scores.scores.items():
            self._optimizer.state[real] = {
                "step": torch.tensor(float(self._step)),
                **{key: state[f"{key}/{name}"].to(real.device) for key in ("exp_avg", "exp_avg_sq")},
            }
        names = self.scores.scores
        self.scores.load_state_dict({"scores": {name: state[f"real/{name}"].to(names[name].device) for name in names}})
