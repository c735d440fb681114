"""The sparsifier of gradual pruning (PLATON, Taylor, magnitude).

It works for any task and model, and ends with a mask at exactly the requested sparsity.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from console.errors import InputError, nearest
from console.progress import console
from console.words import counted
from models.base import Model
from models.layers import PrunableLayer
from sparsity.gradual import Gradual
from sparsity.mask import Mask
from sparsity.percents import percent
from sparsity.progressive_config import ProgressiveConfig
from sparsity.sparsifiers import Fixed, Sparsifier
from sparsity.weighting import LayerWeights, read_ids

FEW = 0.01
"""Layers with a lower density are named in a warning."""

POINTS = 200
"""Largest number of masks in the picture."""


class Progressive(Sparsifier):
    """Masks of rising sparsity. Between two of them all weights are trained, and pruned ones may return."""

    makes_mask = True

    def __init__(self, config: ProgressiveConfig, given: Mask | None, may_overflow: bool = False):
        self.config = config
        self._ids: LayerWeights | None = read_ids(config.ids, config.id_power) if config.ids else None
        self._given, self._may_overflow = given, may_overflow
        self._lock: Fixed | None = None
        self._before: dict[str, Any] | None = None  # the source of the given mask
        self._gradual: Gradual | None = None
        self._history: list[dict[str, Any]] = []
        self._model: Model | None = None
        self._layers: dict[str, PrunableLayer] = {}

    def attach(self, model: Model) -> None:
        """Find the prunable parameters; apply a given mask. InputError when the mask or the dimensions do not fit."""
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
        self._parameters = {}
        for name in self._pruned:
            self._parameters[name] = self._layers[name].weight
            bias = getattr(self._layers[name], "bias", None)
            if self.config.biases and isinstance(bias, nn.Parameter):
                self._parameters[bias_name := f"{name.removesuffix('weight')}bias"] = bias
                if self._factors is not None:
                    self._factors[bias_name] = self._factors[name]
        self._size = sum(parameter.numel() for parameter in self._parameters.values())
        self._check_least([parameter.numel() for parameter in self._parameters.values()])

    def _check_least(self, sizes: list[int]) -> None:
        """InputError when min_kept keeps more weights than the final sparsity allows."""
        if (least := sum(map(self._least, sizes))) > (stay := self._size - round(self._size * self._share)):
            what = f"min_kept keeps {least:,}, more than the {stay:,}"
            raise InputError(f"{what} kept at {self.config.sparsity:g} %: lower it, or -s")

    def _least(self, weights: int) -> int:
        """How many weights a layer of this size keeps at least."""
        least = self.config.min_kept
        return min(weights, math.ceil(least * weights) if least < 1 else int(least))

    @property
    def _share(self) -> float:
        return self.config.sparsity / 100

    def started(self, steps: int, epoch: int) -> None:
        """Start of training: number of steps, and of steps per epoch. InputError when the phases do not fit."""
        config = self.config
        self._steps = steps
        self._settled = steps - max(1, round(config.settle * steps))  # the last step before the final phase
        gone = {}
        if self._lock is not None and self._lock.mask is not None:
            kept = self._lock.mask
            gone = {name: ~kept[name].to(self._layers[name].weight.device) for name in self._pruned}
            if (pruned := sum(int(bits.sum()) for bits in gone.values())) > round(self._size * self._share):
                raise InputError(
                    f"the mask already prunes {100 * pruned / self._size:.2f} %, more than -s {config.sparsity:g}: "
                    "raise -s, or leave --prune out"
                )
        self._gradual = Gradual(
            config.prune or "",
            self._parameters,
            total=steps,
            sparsity=self._share,
            dense_steps=min(round(config.dense_until * steps), self._settled),
            final_steps=steps - self._settled,
            interval=config.interval,
            layer_weights=self._factors,
            betas=(config.beta1, config.beta2),
            epoch=epoch,
            min_kept=self._least,
            pruned=gone,
            may_overflow=self._may_overflow,
        )

    def settled(self, step: int) -> bool:
        """Whether the weights after `step` are at the final sparsity."""
        return step > self._settled

    def after_backward(self) -> None:
        """Zero the gradients of weights that stay pruned."""
        if self._lock is not None:
            self._lock.after_backward()

    def after_update(self, step: int) -> None:
        """Update the scores, and prune when a mask is due."""
        if self._mask_stays:
            self._prune()  # the optimizer's momentum moves a weight even without a gradient
            return
        assert self._gradual is not None
        if self._gradual.update(step):
            self._remember(step, self._gradual.remaining(step))
            if self._mask_stays:
                self._hold()

    @property
    def _mask_stays(self) -> bool:
        """Whether the last mask stays: the first one of the final phase, with --freeze."""
        return self.config.freeze and bool(self._history) and self._history[-1]["step"] > self._settled

    @torch.no_grad()
    def _prune(self) -> None:
        for name, bits in self._bits().items():
            self._parameters[name].masked_fill_(bits, 0)

    def _hold(self) -> None:
        """Fix the mask from here on."""
        assert self._model is not None and self.mask is not None
        self._lock = Fixed(self.mask)
        self._lock.attach(self._model)

    def _remember(self, step: int, remaining: float) -> None:
        """Record the density of each layer, for the picture."""
        last = self._history[-1]["step"] if self._history else -self._steps
        if step - last >= self._steps / POINTS or step == self._steps or last <= self._settled < step:
            kept = {n: 1 - float(bits.float().mean()) for n, bits in self._bits().items() if n in self._layers}
            self._history.append({"step": step, "remaining": remaining, "kept": kept})

    def _bits(self) -> Mapping[str, Tensor]:
        """True where the last mask prunes, by name."""
        return {} if self._gradual is None else self._gradual.mask

    @property
    def mask(self) -> Mask | None:  # type: ignore[override]
        """The last mask; None before the first."""
        if self._model is None or not self._bits():
            return self._lock.mask if self._lock is not None else None
        kept = {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in self._layers.items()}
        if self._lock is not None and self._lock.mask is not None:
            kept |= self._lock.mask  # also of layers that this run does not prune
        kept |= {name: ~bits for name, bits in self._bits().items() if name in kept}
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
            if moved := int(self._parameters[name].masked_select(bits).count_nonzero()):
                raise RuntimeError(f"{moved} pruned weights of '{name}' are not zero: this is a bug")

    def finish(self) -> Mask | None:
        """The final mask of the run; momentum copies are zeroed under it, too."""
        assert self._model is not None
        mask = self.mask
        if mask is not None:
            Fixed(mask).attach(self._model)
            warn_of_few(mask)
            if self.config.biases:
                zeros = {n: int(bits.sum()) for n, bits in self._bits().items() if n not in self._layers}
                of = sum(self._parameters[n].numel() for n in zeros)
                console.print(f"biases: {sum(zeros.values()):,} of {of:,} are zero; the mask holds weights only")
        return mask

    def fingerprint(self) -> str:
        """A hash of the last mask, equal on all processes."""
        digest = hashlib.sha256()
        for name, bits in self._bits().items():
            digest.update(name.encode() + bits.cpu().numpy().tobytes())
        return digest.hexdigest()

    def log(self) -> dict[str, Any]:
        """Fields for a row of log.jsonl: the density, the threshold and the number of weights that returned."""
        if self._gradual is None or not self._bits():
            return {"remaining": 1.0}
        pruned = sum(int(bits.sum()) for bits in self._bits().values())
        return {
            "remaining": round(1 - pruned / self._size, 6),
            "threshold": self._gradual.threshold,
            "revived": self._gradual.revived,
        }

    def identity(self) -> dict[str, Any]:
        """The settings, the intrinsic dimensions, and the given mask."""
        return {"mask": self._before, **self._settings()}

    @property
    def history(self) -> list[dict[str, Any]]:
        """Steps, with the scheduled density and the density of each layer."""
        return self._history

    def state_dict(self) -> dict[str, Any]:
        """Scores, the last mask, the history."""
        assert self._gradual is not None
        return {"gradual": self._gradual.state_dict(), "history": self._history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The counterpart of `state_dict`."""
        assert self._gradual is not None
        self._gradual.load_state_dict(state["gradual"])
        self._history = list(state["history"])
        if self._mask_stays:
            self._hold()


def warn_of_few(mask: Mask, way_out: str = "") -> None:
    """Warn of layers that keep almost nothing. way_out: a remedy besides --min_kept."""
    few = [name for name in mask if 1 - mask.sparsity([name]) < FEW]
    none = [name for name in few if not mask.kept(name)]
    if few:
        console.print(
            f"warning: less than {percent(FEW)} % is kept of {counted(len(few), 'layer')} ({len(none)} with nothing): "
            f"{', '.join(few[:5])}{', ...' if len(few) > 5 else ''}; --min_kept sets a floor{way_out}"
        )
