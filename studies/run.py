"""A result in a report, of a grid's run or of another tool's."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

from evaluation.items import Groups, groups_of
from studies.results import Result


@dataclass(frozen=True)
class Run:
    """A result. task: PRUNE for a pruning or smaller models. sparsity: percent, 0 for dense.

    chance: another seed may give another result. single: scores of single test items, compressed; empty if there are
    none. recipe: hash of how the masks were made, for any seed; None if unknown. answers: to single items, compressed;
    empty if not saved.
    """

    id: str
    model: str
    pruner: str
    method: str
    sparsity: float
    task: str
    seed: int
    chance: bool
    metrics: dict[str, float]
    result: Result
    single: bytes = b""
    recipe: str | None = None
    answers: bytes = b""

    def items(self) -> Groups | None:
        """Scores of single test items, if the run saved them; InputError if they are incomplete."""
        return groups_of(json.loads(zlib.decompress(self.single)), self.id) if self.single else None
