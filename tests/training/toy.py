"""A small thing to train, and what the tests of the loop and of its snapshots need around it.

python -m tests.training.toy FOLDER     (in two processes that take turns in the micro-batches; at a rate of 0)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn

from training.loop import Loop, fit
from training.optimizer import Recipe
from training.schedule import Schedule

IDENTITY = {"model": "toy", "stage": {"recipe": {"lr": 0.05}, "sides": {}}, "seed": 3}


class Toy(nn.Module):
    """Two layers with dropout between; two losses. Weights are drawn from `start`."""

    def __init__(self, start: int = 0, dropout: float = 0.0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(start)
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """x [b, 4], y [b, 2]."""
        x, y = batch
        said = self.second(self.dropout(self.first(x).tanh()))
        return {"square": F.mse_loss(said, y), "size": 0.1 * said.square().mean()}


def micro_batches(size: int) -> object:
    """Batch n as a function of n alone; the function remembers where it was asked to start, in `.starts`."""

    def batches(first: int) -> Iterator[tuple[Tensor, Tensor]]:
        batches.starts.append(first)
        n = first
        while True:
            rng = torch.Generator().manual_seed(n)
            yield torch.randn(size, 4, generator=rng), torch.randn(size, 2, generator=rng)
            n += 1

    batches.starts = []
    return batches


def share(batches: Callable[[int], Iterator], rank: int, world: int) -> Callable[[int], Iterator]:
    """Every world-th of the micro-batches from number `rank` on."""

    def own(first: int) -> Iterator:
        for n, batch in enumerate(batches(first * world)):
            if n % world == rank:
                yield batch

    return own


def loop(folder: Path, **changes: object) -> Loop:
    """Twelve steps with a rate that changes at each."""
    recipe = Recipe(lr=0.05, weight_decay=0.1, schedule=Schedule(0.25, "cosine"))
    settings = {"title": "toy", "recipe": recipe, "steps": 12, "seed": 3, "folder": folder, "identity": IDENTITY}
    return Loop(**(settings | changes))


def one_process() -> Fabric:
    """Fabric on one CPU process."""
    return Fabric(accelerator="cpu", devices=1)


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def main() -> None:
    """Two processes, whose weights stay as they are: what is logged is of known weights."""
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    settings = loop(Path(sys.argv[1]), recipe=Recipe(lr=0.0), steps=5, accumulate=2, log_every=2)
    fit(fabric, Toy(), share(micro_batches(3), fabric.global_rank, fabric.world_size), settings)


if __name__ == "__main__":
    main()
