"""Stability: masks of one model, pruner and sparsity from several draws of the calibration data.

Besides the IoU of all pairs, it counts how many of the k masks keep each weight. Weights kept by all masks are the core
that does not depend on the draw. Independent random masks with the same density in every layer are the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from console.errors import InputError
from inspection.comparison import Comparison, compare
from inspection.reading import MaskFile
from sparsity.mask import Mask
from sparsity.percents import percent

SAME = {
    "model": "models",
    "weights": "weights",
    "precision": "precisions",
    "pruner": "pruners",
    "allocation": "allocations",
    "repair": "repairs",
    "ids": "intrinsic dimensions",
    "id_power": "exponents of the intrinsic dimensions",
    "options": "options",
    "left_out": "scores",
    "num_batches": "numbers of batches",
    "sparsity_asked": "sparsities",
}
"""Keys of a mask's source that must be equal in all masks that have them -> words of the message."""

TOLERANCE = 5e-4
"""Largest difference between the sparsities."""


@dataclass(frozen=True)
class Votes:
    """counts[j]: number of weights that exactly j of k masks keep. expected[j]: the same for random masks."""

    counts: np.ndarray  # int64 [k + 1]
    expected: np.ndarray  # float64 [k + 1]

    def __add__(self, other: Votes) -> Votes:
        return Votes(self.counts + other.counts, self.expected + other.expected)

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(self.counts.sum())

    @property
    def by_all(self) -> float:
        """Share of the weights that every mask keeps."""
        return float(self.counts[-1] / max(1, self.size))

    @property
    def by_some(self) -> float:
        """Share of the weights that some masks keep and others prune."""
        return float(self.counts[1:-1].sum() / max(1, self.size))

    @property
    def by_none(self) -> float:
        """Share of the weights that no mask keeps."""
        return float(self.counts[0] / max(1, self.size))

    @property
    def core(self) -> float:
        """Among the weights that any mask keeps, the share that all keep; 1 if none is kept."""
        return _share(self.counts)

    @property
    def core_by_chance(self) -> float:
        """The same for random masks."""
        return _share(self.expected)


@dataclass(frozen=True)
class Stability:
    """Pairs of the masks, and the votes on the weights of each modality."""

    comparison: Comparison
    votes: dict[str, Votes]

    @property
    def overall(self) -> Votes:
        """Votes on all weights."""
        first, *rest = self.votes.values()
        return sum(rest, first)

    @property
    def all_same(self) -> bool:
        """Whether all masks are equal."""
        return self.overall.by_some == 0


def stability(files: Sequence[MaskFile]) -> Stability:
    """The stability of masks; InputError if they are not draws of one pruning."""
    check_draws(files)
    compared = compare(files)
    masks = [file.mask for file in files]
    votes = {}
    for modality, names in compared.modalities.items():
        first, *rest = (votes_on_layer(masks, name) for name in names)
        votes[modality] = sum(rest, first)
    return Stability(compared, votes)


def votes_on_layer(masks: Sequence[Mask], name: str) -> Votes:
    """The votes on one layer. At random, each mask keeps a weight with its density, independently of the others."""
    size = masks[0].size(name)
    votes = np.zeros(size, dtype=np.uint8 if len(masks) < 256 else np.uint16)
    expected = np.ones(1)
    for mask in masks:
        votes += np.unpackbits(mask.bits(name), count=size)
        density = mask.kept(name) / max(1, size)
        expected = np.convolve(expected, [1 - density, density])
    return Votes(np.bincount(votes, minlength=len(masks) + 1), size * expected)


def check_draws(files: Sequence[MaskFile]) -> None:
    """InputError when the masks differ in more than the draw."""
    if len(files) < 2:
        raise InputError(f"stability needs at least two masks, not {len(files)}: give more files, or --draws")
    first = files[0]
    seen = {first.path.resolve()}
    for other in files[1:]:
        if other.path.resolve() in seen:
            raise InputError(f"{other.path} is given twice: every draw counts once")
        seen.add(other.path.resolve())
        for key, what in SAME.items():
            a, b = (_source_of(file, key) for file in (first, other))
            if None not in (a, b) and a != b:
                raise _unlike(first, other, what, str(a), str(b))
        a, b = first.mask.sparsity(), other.mask.sparsity()
        if set(first.mask) == set(other.mask) and abs(a - b) > TOLERANCE:
            raise _unlike(first, other, "sparsities", f"{100 * a:.2f} %", f"{100 * b:.2f} %")


def _source_of(file: MaskFile, key: str) -> str | None:
    """A value of a mask's source as text, for comparison and messages; None if it has none."""
    source = file.mask.source
    if key == "left_out" and "pruner" in source:  # the key is absent if nothing is left out
        return f"all but {', '.join(left_out)}" if (left_out := source.get(key)) else "all of the score"
    value = source.get(key)
    if value is None and key in ("repair", "ids", "id_power") and "pruner" in source:  # absent where there is none
        return "none"
    if key == "weights" and isinstance(value, dict):  # not the path, which differs between machines
        value = value.get("sha256", value)
    if key == "sparsity_asked" and value is not None:
        return f"{percent(value)} %"
    return None if value is None else str(value)


def _unlike(first: MaskFile, other: MaskFile, what: str, a: str, b: str) -> InputError:
    return InputError(
        f"{first.path} and {other.path} are masks of different {what} ({a} and {b}), but stability is about draws of "
        "one pruning: give masks that differ in the seed only, or use `masks.py compare`"
    )


def _share(votes: np.ndarray) -> float:
    kept = votes[1:].sum()
    return float(votes[-1] / kept) if kept else 1.0
