"""One evaluation of a split: this process's share of the batches, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lightning.fabric import Fabric

from console.progress import progress_bar
from data.evaluation_batches import EvaluationData, evaluation_batches
from data.readers import Batch


@dataclass(frozen=True)
class Evaluation:
    """split: `val` or `test`. epoch: whose weights are evaluated; None: the last one's. workers: loader processes."""

    fabric: Fabric
    split: str
    epoch: int | None
    workers: int = 0

    def bar(self, total: int) -> AbstractContextManager[Callable[..., None]]:
        """A bar of `total` steps, drawn by the first process, and removed when done."""
        return progress_bar(f"evaluating {self.split}", total, show=self.fabric.is_global_zero, keep=False)

    def batches(self, data: EvaluationData, batch_size: int) -> Iterator[Batch]:
        """This process's batches, as `evaluation_batches` deals them."""
        rank, size = self.fabric.global_rank, self.fabric.world_size
        share = range(rank * batch_size, len(data), size * batch_size)
        with self.bar(len(share)) as advance:
            for batch in evaluation_batches(data, batch_size, rank, size, self.workers):
                yield batch
                advance(1)
