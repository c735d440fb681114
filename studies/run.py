"""A result in a report, of a grid's run or of another tool's."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass

from evaluation.items import Groups, groups_of
from studies.results import Result


@dataclass(frozen=True)
class Run:
    """A result. task: PRUNE for what made masks or smaller models. sparsity: percent, 0 for dense. chance: another seed
    may give another result. single: scores of single items, compressed; empty where there are none. recipe: of the
    masks, whatever the seed; None where it is not known. answers: to single items, compressed; empty where nobody kept
    them.
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
        """Scores of single test items, where the run left them; InputError where these are not whole."""
        return groups_of(json.loads(zlib.decompress(self.single)), self.id) if self.single else None
