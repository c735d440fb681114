"""CHITA's first half: the support over the whole model, by iterative hard thresholding.

The gradient matrix A is on disk and larger than memory, so the cost is the number of times it is read: once at the
start, and twice per step, for the gradient and for all trials of the step together. The gradient of a step and its
trials are on disk, too. Memory holds the kept weights of the best point so far, and one bit per weight for each trial.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calibration.gradient_rows import GradientRows
from calibration.statistics import Layers
from console.errors import InputError
from models.layers import form_of
from pruners.chita_blocks import STEPS
from sparsity.mask import Mask
from sparsity.scores import Scores

VECTORS = 1 + len(STEPS)
"""Vectors on disk beside A: the gradient, and the weights of each trial of a step."""

Values = Callable[[str], np.ndarray]
"""Layer's name -> its weights float32, in the shape of the parameter."""


@dataclass(frozen=True)
class Trial:
    """A support, as bits only, and a function that computes the weights on it."""

    support: Mask
    values: Values

    def weights(self, name: str) -> np.ndarray:
        """b of a layer: zero where pruned."""
        return np.where(self.support[name].numpy(), self.values(name), np.float32(0))


@dataclass(frozen=True)
class Point:
    """An evaluated trial: v = A (b - w) [n], and the objective."""

    trial: Trial
    v: Tensor
    objective: float

    def settled(self) -> Point:
        """The same with its kept weights stored, layer by layer, so that the arrays they came from can be freed."""
        bits = self.trial.support
        mask = bits.with_values((name, torch.from_numpy(self.trial.weights(name))) for name in bits)
        return Point(Trial(mask, mask.weights), self.v, self.objective)


class Problem:
    """The quadratic problem over all layers. alive: weights that earlier rounds kept (None: all)."""

    def __init__(
        self,
        layers: Layers,
        rows: GradientRows,
        lambda_: float,
        block: int,
        iterations: int,
        allocate: Callable[[Scores], Mask],
        alive: Mask | None,
        settled: bool = False,
    ):
        """allocate: scores -> the mask that keeps the largest, at the sparsity of this round.

        settled: the support is not refined within blocks, since the allocation fixes the number of weights in smaller
        parts.
        """
        self.block, self.iterations, self.settled = block, iterations, settled
        self.mu = rows.rows * lambda_
        self.inverse_batch = rows.rows / rows.samples
        self._layers, self._rows, self._allocate, self._alive = layers, rows, allocate, alive
        self._device = next(iter(layers.values())).weight.device
        self._scratch = torch.empty(0, dtype=torch.float64, device=self._device)
        self._slope, *self._moved = map(rows.vector, range(VECTORS))
        # The first is A' (v + 1/B), the gradient without its ridge term; the others are the weights of each trial.

    def original(self, name: str) -> np.ndarray:
        """w of a layer, float32 in the shape of the parameter."""
        return self._layers[name].weight.detach().float().cpu().numpy()

    def blocks(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Columns of a layer and their part of A [n, columns]; gradients of pruned weights are zero."""
        alive = None if self._alive is None else self._alive[name].flatten()
        for columns, a in self._rows.blocks(name, self.block):
            if alive is not None:
                a *= alive[columns]
            yield columns, a.to(self._device)

    def survivors(self) -> Mask:
        """The best support that hard thresholding finds, with its weights: at least as good as magnitude pruning."""
        magnitude = Trial(self._largest(self.original), self.original)
        best, curvature = self._start(magnitude)
        # The first step starts from the dense weights (b = w, v = 0), whose gradient needs no extra reading of A.
        points = self._step(self.original, curvature) if self.iterations else []
        best = min([best, *points], key=lambda point: point.objective).settled()
        del points
        for _ in range(self.iterations - 1):
            self._find_slope(best.v)
            points = self._step(best.trial.values, curvature)
            better = next((point for point in points if point.objective < best.objective), None)
            del points
            if better is None:
                break
            best = better.settled()
            del better
        return best.trial.support

    def _start(self, magnitude: Trial) -> tuple[Point, float]:
        """The first reading of A: evaluate magnitude pruning, find the curvature, set the slope at the dense weights.

        The curvature is the largest eigenvalue of A A' + mu, in float64.
        """
        n = self._rows.rows
        gram = torch.zeros(n, n, dtype=torch.float64, device=self._device)
        ones = torch.full((n,), self.inverse_batch, dtype=torch.float64, device=self._device)
        v, square = torch.zeros_like(ones), 0.0
        for name in self._layers:
            d = self._distance(magnitude.weights(name), name)
            square += float(d @ d)
            for columns, a in self._wide(name):
                gram += a @ a.t()
                self._slope.write(name, columns.start, (ones @ a).float().cpu().numpy())
                v += a @ torch.from_numpy(d[columns]).to(self._device)
        if not torch.isfinite(gram).all():
            raise InputError(
                "the loss has gradients that are NaN or infinite: check the weights, the data and --precision"
            )
        curvature = torch.linalg.eigvalsh(gram)[-1].item() + self.mu
        return self._point(magnitude, v, square), curvature

    def _find_slope(self, v: Tensor) -> None:
        factors = v + self.inverse_batch
        for name in self._layers:
            for columns, a in self._wide(name):
                self._slope.write(name, columns.start, (factors @ a).float().cpu().numpy())

    def _step(self, at: Values, curvature: float) -> list[Point]:
        """The points of thresholded gradient steps from `at`, one per length in `STEPS`."""
        for name in self._layers:
            b = at(name)
            gradient = self._slope.read(name) + np.float32(self.mu) * (b - self.original(name))
            for step, moved in zip(STEPS, self._moved, strict=True):
                moved.write(name, 0, b - np.float32(step / curvature) * gradient)
        return self._evaluated([Trial(self._largest(moved.read), moved.read) for moved in self._moved])

    def _evaluated(self, trials: list[Trial]) -> list[Point]:
        """Evaluate the trials, in one reading of A for all of them."""
        v = torch.zeros(len(trials), self._rows.rows, dtype=torch.float64, device=self._device)
        squares = [0.0] * len(trials)
        for name in self._layers:
            distances = np.stack([self._distance(trial.weights(name), name) for trial in trials])
            squares = [square + float(d @ d) for square, d in zip(squares, distances, strict=True)]
            for columns, a in self._wide(name):
                v += torch.from_numpy(distances[:, columns]).to(self._device) @ a.t()
        return [self._point(trial, v[i], squares[i]) for i, trial in enumerate(trials)]

    def _point(self, trial: Trial, v: Tensor, square: float) -> Point:
        """square: sum of squares of b - w."""
        objective = (v @ v) / 2 + self.inverse_batch * v.sum() + self.mu / 2 * square
        return Point(trial, v, objective.item())

    def _distance(self, b: np.ndarray, name: str) -> np.ndarray:
        """b - w of a layer, flat float64."""
        return b.reshape(-1).astype(np.float64) - self.original(name).reshape(-1)

    def _wide(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """`blocks` in float64; each is valid until the next, since allocating new memory costs more than the sums."""
        for columns, a in self.blocks(name):
            if self._scratch.numel() < a.numel():
                self._scratch = torch.empty(a.numel(), dtype=torch.float64, device=self._device)
            wide = self._scratch[: a.numel()].view(a.shape)
            yield columns, wide.copy_(a)

    def _largest(self, u: Values) -> Mask:
        """The support of the largest |u| among the weights that are alive."""

        def score(name: str) -> np.ndarray:  # recomputed on access: holding all would be a second copy of the weights
            magnitude = forms[name].matrix(np.abs(u(name)))
            if not np.isfinite(magnitude).all():
                raise InputError(f"layer '{name}' has weights that are NaN or infinite: check the weights and the data")
            if self._alive is not None:
                np.putmask(magnitude, ~self._alive.matrix(name).numpy(), -1)
            return magnitude

        forms = {name: form_of(layer) for name, layer in self._layers.items()}
        return self._allocate(Scores({name: form.matrix_shape for name, form in forms.items()}, score))
