"""CHITA's first half: which weights survive, over the whole model, by iterative hard thresholding.

Every step walks twice over the gradient matrix on disk. In memory are one vector of all weights and the
survivors of the best point so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pruners.chita_blocks import STEPS
from pruners.gradient_rows import GradientRows
from pruners.mask import Mask
from pruners.scores import Scores
from pruners.statistics import Layers


@dataclass
class Point:
    """A candidate b: support and surviving values; v = A (b - w) [n], objective."""

    mask: Mask
    v: Tensor
    objective: float


class Problem:
    """The quadratic problem over all layers. alive: weights that earlier rounds left (None: all)."""

    def __init__(
        self,
        layers: Layers,
        rows: GradientRows,
        lambda_: float,
        block: int,
        iterations: int,
        allocate: Callable[[Scores], Mask],
        alive: Mask | None,
    ):
        """allocate: scores -> the mask that keeps the largest, at the sparsity of this round."""
        self.block, self.iterations = block, iterations
        self.mu = rows.rows * lambda_
        self.inverse_batch = rows.rows / rows.samples
        self._layers, self._rows, self._allocate, self._alive = layers, rows, allocate, alive
        self._device = next(iter(layers.values())).weight.device

    def original(self, name: str) -> np.ndarray:
        """w of a layer, [o, i] float32."""
        return self._layers[name].weight.detach().float().cpu().numpy()

    def blocks(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Columns of a layer and A of them [n, columns]; dead weights have no gradient."""
        alive = None if self._alive is None else self._alive[name].flatten()
        for columns, a in self._rows.blocks(name, self.block):
            if alive is not None:
                a *= alive[columns]
            yield columns, a.to(self._device)

    def survivors(self) -> Point:
        """The best point that hard thresholding finds, at least as good as magnitude pruning."""
        curvature = self._curvature()
        best = self._point(self.original)
        ones = torch.full((self._rows.rows,), self.inverse_batch, dtype=torch.float64, device=self._device)
        # From the dense weights (b = w, v = 0): the same step, but nothing is at zero yet.
        for step in STEPS:
            first = self._point(self._moved(self.original, ones, step / curvature))
            best = min(best, first, key=lambda point: point.objective)
        for _ in range(self.iterations - 1):
            for step in STEPS:
                moved = self._moved(lambda name, p=best: p.mask.weights(name), best.v + ones, step / curvature)
                candidate = self._point(moved)
                if candidate.objective < best.objective:
                    best = candidate
                    break
            else:
                break
        return best

    def _curvature(self) -> float:
        """Largest eigenvalue of A A' + mu, in float64."""
        n = self._rows.rows
        gram = torch.zeros(n, n, dtype=torch.float64, device=self._device)
        for name in self._layers:
            for _, a in self.blocks(name):
                a = a.double()
                gram += a @ a.t()
        return torch.linalg.eigvalsh(gram)[-1].item() + self.mu

    def _moved(self, at: Callable[[str], np.ndarray], slope: Tensor, step: float) -> Callable[[str], np.ndarray]:
        """b - step * gradient, layer by layer; slope = v + 1/B."""

        def moved(name: str) -> np.ndarray:
            b, w = at(name).reshape(-1), self.original(name).reshape(-1)
            u = np.empty_like(b)
            for columns, a in self.blocks(name):
                gradient = (slope @ a.double()).cpu().numpy() + self.mu * (b[columns] - w[columns].astype(np.float64))
                u[columns] = b[columns] - step * gradient
            return u.reshape(self._layers[name].weight.shape)

        return moved

    def _point(self, of: Callable[[str], np.ndarray]) -> Point:
        """Keep the largest of the weights `of(name)` and evaluate what that gives."""
        mask = self._thresholded({name: of(name) for name in self._layers})
        v = torch.zeros(self._rows.rows, dtype=torch.float64, device=self._device)
        square = 0.0
        for name in self._layers:
            d = mask.weights(name).reshape(-1).astype(np.float64) - self.original(name).reshape(-1)
            square += float(d @ d)
            for columns, a in self.blocks(name):
                v += a.double() @ torch.from_numpy(d[columns]).to(self._device)
        objective = (v @ v) / 2 + self.inverse_batch * v.sum() + self.mu / 2 * square
        return Point(mask, v, objective.item())

    def _thresholded(self, u: dict[str, np.ndarray]) -> Mask:
        """The mask of the largest |u| among what is alive, with their values."""

        def score(name: str) -> np.ndarray:  # anew at each look: all of them would be a second copy of the weights
            magnitude = np.abs(u[name]).reshape(len(u[name]), -1)
            if self._alive is not None:
                magnitude[~self._alive[name].flatten(1).numpy()] = -1
            return magnitude

        shapes = {name: (len(values), values[0].size) for name, values in u.items()}
        mask = self._allocate(Scores(shapes, score))
        return mask.with_values({name: torch.from_numpy(values) for name, values in u.items()})
