"""Pruning while a model trains: masks that grow (PLATON, Taylor, magnitude), or whose scores are trained first (HYDRA).

Both are sparsifiers of a run, of any task and model, and end with a mask at exactly the sparsity that was asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from console.errors import InputError, nearest
from console.progress import console
from console.words import counted
from models.base import Model
from models.layers import PrunableLayer
from sparsity.gradual import Gradual, protect, smallest
from sparsity.mask import Mask
from sparsity.percents import percent
from sparsity.progressive_config import HYDRA, ProgressiveConfig
from sparsity.sparsifiers import Fixed, Sparsifier, TrainedScores
from sparsity.weighting import LayerWeights, read_ids

FEW = 0.01
"""A layer that keeps less than this share is named."""

POINTS = 200
"""Masks whose layers are remembered for the picture, at the most."""


def progressive(config: ProgressiveConfig, given: Mask | None, may_overflow: bool = False) -> Progressive:
    """The sparsifier that a configuration asks for. given: a mask whose zeros stay, and count.

    may_overflow: whether the optimizer leaves out steps whose gradients are not finite (16-mixed).
    """
    kind = Hydra if config.prune == HYDRA else Progressive
    return kind(config, given, may_overflow)


class Progressive(Sparsifier):
    """Masks that grow with the run. Between two of them all weights are trained, and pruned ones may come back."""

    makes_mask = True

    def __init__(self, config: ProgressiveConfig, given: Mask | None, may_overflow: bool = False):
        self.config = config
        self._ids: LayerWeights | None = read_ids(config.ids, config.id_power) if config.ids else None
        self._given, self._may_overflow = given, may_overflow
        self._lock: Fixed | None = None
        self._before: dict[str, Any] | None = None  # what the given mask says of itself
        self._gradual: Gradual | None = None
        self._history: list[dict[str, Any]] = []
        self._model: Model | None = None
        self._layers: dict[str, PrunableLayer] = {}

    def attach(self, model: Model) -> None:
        """Find what is pruned; a given mask is applied. InputError when it, or the dimensions, do not fit."""
        self._model, self._layers = model, model.prunable_layers()
        if self._given is not None:
            self._lock = Fixed(self._given)
            self._lock.attach(model)
            self._before = self._lock.identity()["mask"]
        modality = self.config.modality
        known = dict.fromkeys(model.modality_of(name) for name in self._layers)
        if modality is not None and modality not in known:
            raise InputError(
                f"there is no modality '{modality}'{nearest(modality, known)}: the model has {', '.join(known)}"
            )
        self._pruned = [name for name in self._layers if modality in (None, model.modality_of(name))]
        self._factors = None if self._ids is None else self._ids.fitted(model)
        self._size = sum(self._layers[name].weight.numel() for name in self._pruned)
        if (least := self.config.min_kept * len(self._pruned)) > self._size - round(self._size * self._share):
            raise InputError(f"min_kept asks for {least:,} weights, more than stay at {self.config.sparsity:g} %")

    @property
    def _share(self) -> float:
        return self.config.sparsity / 100

    def started(self, steps: int, epoch: int) -> None:
        """The run has so many steps, and so many an epoch. InputError where the phases do not fit."""
        config = self.config
        self._steps = steps
        self._settled = steps - max(1, round(config.settle * steps))  # the last step before the final phase
        gone = {}
        if self._lock is not None and self._lock.mask is not None:
            kept = self._lock.mask
            gone = {name: ~kept[name].to(self._layers[name].weight.device) for name in self._pruned}
            if (lost := sum(int(bits.sum()) for bits in gone.values())) > round(self._size * self._share):
                raise InputError(
                    f"the mask prunes {100 * lost / self._size:.2f} % already, more than the {config.sparsity:g} % "
                    "asked for with -s: ask for more, or leave --prune out"
                )
        self._gradual = Gradual(
            config.prune or "",
            {name: self._layers[name].weight for name in self._pruned},
            total=steps,
            sparsity=self._share,
            dense_steps=min(round(config.dense_until * steps), self._settled),
            final_steps=steps - self._settled,
            interval=config.interval,
            layer_weights=self._factors,
            betas=(config.beta1, config.beta2),
            epoch=epoch,
            min_kept=config.min_kept,
            pruned=gone,
            may_overflow=self._may_overflow,
        )

    def settled(self, step: int) -> bool:
        """Whether the weights after `step` are at the final sparsity."""
        return step > self._settled

    def after_backward(self) -> None:
        """Gradients of weights that stay pruned go."""
        if self._lock is not None:
            self._lock.after_backward()

    def after_update(self, step: int) -> None:
        """Scores move on; a mask falls where it is due."""
        if self.config.freeze and step > self._settled + 1:
            self._prune()  # what the optimizer remembers of a weight moves it without a gradient
            return
        assert self._gradual is not None
        if self._gradual.update(step):
            self._remember(step, self._gradual.remaining(step))
            if self.config.freeze and self.settled(step):
                self._hold()

    @torch.no_grad()
    def _prune(self) -> None:
        for name, bits in self._bits().items():
            self._layers[name].weight.masked_fill_(bits, 0)

    def _hold(self) -> None:
        """From here on the mask is fixed."""
        assert self._model is not None and self.mask is not None
        self._lock = Fixed(self.mask)
        self._lock.attach(self._model)

    def _remember(self, step: int, remaining: float) -> None:
        """Which share of each layer is kept after some steps, for the picture."""
        last = self._history[-1]["step"] if self._history else -self._steps
        if step - last >= self._steps / POINTS or step in (self._steps, self._settled + 1):
            kept = {n: 1 - float(bits.float().mean()) for n, bits in self._bits().items()}
            self._history.append({"step": step, "remaining": remaining, "kept": kept})

    def _bits(self) -> Mapping[str, Tensor]:
        """Where the last mask pruned, by name."""
        return {} if self._gradual is None else self._gradual.mask

    @property
    def mask(self) -> Mask | None:  # type: ignore[override]
        """The last mask; None before the first."""
        if self._model is None or not self._bits():
            return self._lock.mask if self._lock is not None else None
        bits = self._bits()
        kept = {
            name: ~bits[name] if name in bits else torch.ones_like(layer.weight, dtype=torch.bool)
            for name, layer in self._layers.items()
        }
        mask = Mask(kept, {name: self._model.modality_of(name) for name in kept}, self._source())
        mask.source |= {"sparsity_reached": mask.sparsity()}
        return mask

    def _source(self) -> dict[str, Any]:
        return {"pruner": self.config.prune, "while_training": True, "sparsity_asked": self._share, **self._settings()}

    def _settings(self) -> dict[str, Any]:
        settings = asdict(self.config) | ({"ids": None} if self._ids is None else self._ids.identity)
        return {"progressive": settings}

    def check(self) -> None:
        """RuntimeError when a weight that the last mask pruned is not exactly zero."""
        if self._lock is not None:
            self._lock.check()
        for name, bits in self._bits().items():
            if moved := int(self._layers[name].weight.masked_select(bits).count_nonzero()):
                raise RuntimeError(f"{moved} pruned weights of '{name}' are not zero: this is a bug")

    def finish(self) -> Mask | None:
        """The final mask, which the run leaves; copies that follow the weights are zeroed under it."""
        assert self._model is not None
        mask = self.mask
        if mask is not None:
            Fixed(mask).attach(self._model)
            few = [name for name in mask if 1 - mask.sparsity([name]) < FEW]
            if few:
                console.print(
                    f"warning: less than {percent(FEW)} % is kept of {counted(len(few), 'layer')}: "
                    f"{', '.join(few[:5])}{', ...' if len(few) > 5 else ''}; min_kept sets a floor"
                )
        return mask

    def fingerprint(self) -> str:
        """Of the last mask: equal on all processes."""
        digest = hashlib.sha256()
        for name, bits in self._bits().items():
            digest.update(name.encode() + bits.cpu().numpy().tobytes())
        return digest.hexdigest()

    def log(self) -> dict[str, Any]:
        """For a row of log.jsonl: the share that remains, the threshold and how many weights came back."""
        if self._gradual is None or not self._bits():
            return {"remaining": 1.0}
        lost = sum(int(bits.sum()) for bits in self._bits().values())
        return {
            "remaining": round(1 - lost / self._size, 6),
            "threshold": self._gradual.threshold,
            "revived": self._gradual.revived,
        }

    def identity(self) -> dict[str, Any]:
        """The settings, what the dimensions are, and the mask that was there before."""
        return {"mask": self._before, **self._settings()}

    @property
    def history(self) -> list[dict[str, Any]]:
        """Steps with the share that remains by schedule, and the share kept of each layer."""
        return self._history

    def state_dict(self) -> dict[str, Any]:
        """Scores, the last mask, what was remembered."""
        assert self._gradual is not None
        return {"gradual": self._gradual.state_dict(), "history": self._history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        assert self._gradual is not None
        self._gradual.load_state_dict(state["gradual"])
        self._history = list(state["history"])
        if self.config.freeze and self._history and self._history[-1]["step"] > self._settled:
            self._hold()


class Hydra(Progressive):
    """Scores are trained on the task's loss while their weights stand still; then the weights, under the mask found.

    All else (a new head, norms, biases) is trained from the start: a fresh classifier of zeros gives no gradient.

    Sehwag et al., "HYDRA: Pruning Adversarially Robust Neural Networks", NeurIPS 2020: the scores start at the
    weights, scaled to the size of a fresh layer's.
    """

    _searching = True
    _threshold = float("nan")
    _found: Mapping[str, Tensor] = MappingProxyType({})

    def attach(self, model: Model) -> None:
        """Scores for what is pruned."""
        super().attach(model)
        if self._given is not None:
            raise InputError("--prune hydra searches among all weights: leave --mask out")
        layers = {name: self._layers[name] for name in self._pruned}
        start = {}
        for name, layer in layers.items():
            weight = layer.weight.detach().float()
            fan_in = weight[0].numel()
            start[name] = weight * ((6 / fan_in) ** 0.5 / weight.abs().max().clamp_min(1e-12))
        self._scores = TrainedScores(layers, start, self._cut)

    def _cut(self, scores: Mapping[str, Tensor]) -> Mask:
        def sizes(name: str) -> Tensor:
            size = scores[name].detach().abs().float()
            if self._factors is not None:
                size = size * self._factors[name]
            protect(size, self.config.min_kept)
            return size

        count = round(self._size * self._share)
        self._threshold, self._found = smallest(sizes, list(scores), self._size, count)
        return Mask({name: ~bits for name, bits in self._found.items()})

    def started(self, steps: int, epoch: int) -> None:
        """The search takes its share of the run."""
        self._steps = steps
        self._settled = max(1, round(self.config.search * steps))
        if self._settled >= steps:
            raise InputError(
                f"of {counted(steps, 'step')} the search takes {self._settled}: train for longer, or lower search"
            )

    def trained(self, module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        """The scores, and what the run finetunes afterwards."""
        yield from ((f"scores.{name}", score) for name, score in self._scores.scores.items())
        yield from module.named_parameters()

    def rates(self) -> dict[str, float]:
        """The scores have a rate of their own."""
        return {"scores.": self.config.score_lr}

    @torch.no_grad()
    def after_backward(self) -> None:
        """The gradients of prunable weights go to their scores, and after the search to the weights kept."""
        if not self._searching:
            assert self._lock is not None
            return self._lock.after_backward()
        return self._scores.after_backward()

    def after_update(self, step: int) -> None:
        """The mask of the new scores; after the last step of the search it stays."""
        if not self._searching:
            return
        self._scores.after_update(step)
        self._remember(step, 1 - self._share)
        if step >= self._settled:
            self._end_search()

    def _end_search(self) -> None:
        self._searching = False
        for score in self._scores.scores.values():
            score.grad = None
        self._hold()

    def _bits(self) -> Mapping[str, Tensor]:
        return self._found

    def settled(self, step: int) -> bool:
        """Once the weights are trained."""
        return step > self._settled

    def log(self) -> dict[str, Any]:
        """For a row of log.jsonl."""
        return {"remaining": 1 - self._share, "threshold": self._threshold, "searching": self._searching}

    def state_dict(self) -> dict[str, Any]:
        """The scores, whether they are still trained, the mask."""
        return {
            "scores": self._scores.state_dict(),
            "found": dict(self._found),
            "searching": self._searching,
            "history": self._history,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the search, or what follows it; the weights of the snapshot are those of a mask already."""
        trained = {name: self._layers[name].weight.detach().clone() for name in self._pruned}
        self._history = list(state["history"])
        self._scores.load_state_dict(state["scores"])
        self._searching = state["searching"]
        if not self._searching:
            for name, weight in trained.items():
                self._layers[name].weight.copy_(weight)
            self._found = {n: bits.to(self._layers[n].weight.device) for n, bits in state["found"].items()}
            self._hold()
