"""How different the output tokens of each layer are: the importance of layers in TAMP's diversity-aware sparsity (DAS).

Lee et al., "TAMP: Token-Adaptive Layerwise Pruning in Multimodal Large Language Models", Findings of ACL 2025. The mean
cosine distance between text tokens, between image tokens, and from text to image tokens of a sequence; a layer's
importance is the mean of the three, or of those that it has.
    python prune.py --pruner wanda --allocation das
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.layer_inputs import Read, rows
from calibration.statistics import InputSums, Layers, never_met
from models.base import Model
from models.layers import blocks_of, matrix

TERMS = 3  # within text (or the only kind), within images, between both


class Diversity(InputSums):
    """A statistic: sums over sequences of the mean distances, and the number of sequences that have them."""

    uses_loss: ClassVar[bool] = False
    steps: ClassVar[int | None] = None  # all that the method reads

    def __init__(self, model: Model, layers: Layers):
        super().__init__(model, len(layers), 2 * TERMS + 1)  # and calls
        self._place = {name: number for number, name in enumerate(layers)}

    def look(self, read: Read) -> None:
        """Add the distances of what a layer is about to return."""
        sums = self._fresh[self._place[read.name]]
        sums[-1] += 1
        if not read.sequences:
            return
        for term, (cosines, pairs) in enumerate(zip(*cosines_of_pairs(*unit_outputs(read)), strict=True)):
            some = pairs > 0
            sums[term] += (1 - cosines[some] / pairs[some]).sum()
            sums[TERMS + term] += some.sum()

    def importance(self) -> dict[str, float]:
        """The importance of each layer; the mean of the others where no sequence has two tokens."""
        found: dict[str, float] = {}
        for name, place in self._place.items():
            sums, counts, calls = self._sums[place].split([TERMS, TERMS, 1])
            if not calls:
                raise never_met(name)
            if counts.any():
                found[name] = float((sums / counts)[counts > 0].mean())
        usual = sum(found.values()) / max(1, len(found))
        return {name: found.get(name, usual) for name in self._place}


def unit_outputs(read: Read) -> tuple[Tensor, list[Tensor]]:
    """A layer's output as unit vectors [b, t, o] float64, and for each kind of token which are of it, [b, t], 0 or 1.

    A layer that reads vectors [t, i] has one sequence of them.
    """
    weight = matrix(read.layer).float()
    size = len(weight) // blocks_of(read.layer)
    mine = slice(read.block * size, (read.block + 1) * size)
    bias = getattr(read.layer, "bias", None)
    out = F.linear(rows(read), weight[mine], None if bias is None else bias[mine].float())
    sequences = len(read.x) if read.x.dim() > 2 else 1
    tokens = F.normalize(out.double(), dim=1).reshape(sequences, -1, size)
    there = torch.ones(tokens.shape[:2], dtype=tokens.dtype, device=tokens.device)
    if read.real is not None and not isinstance(read.layer, nn.Conv2d):
        there = there * read.real.reshape(sequences, -1)
    if read.image is None:
        return tokens, [there]
    image = read.image.reshape(sequences, -1).to(there)
    return tokens, [there * (1 - image), there * image]


def cosines_of_pairs(tokens: Tensor, kinds: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Sums of cosines over pairs of tokens, and how many pairs: within each kind, and between both [terms, b].

    tokens, kinds: as of `unit_outputs`.
    """
    # The sum over pairs of cosines follows from the sum of unit vectors, so that no matrix [t, t] is needed.
    totals = [torch.einsum("bt,bto->bo", kind, tokens) for kind in kinds]
    counts, own = [kind.sum(dim=1) for kind in kinds], tokens.square().sum(dim=2)
    cosines = [total.square().sum(dim=1) - (kind * own).sum(dim=1) for kind, total in zip(kinds, totals, strict=True)]
    pairs = [count * (count - 1) for count in counts]
    if len(kinds) == 2:
        cosines.append((totals[0] * totals[1]).sum(dim=1))
        pairs.append(counts[0] * counts[1])
    return torch.stack(cosines), torch.stack(pairs)
