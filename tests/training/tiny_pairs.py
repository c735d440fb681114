"""A tiny X-VLM that learns retrieval from made-up pairs, and the gradient of one optimizer step of `fit`.

python -m tests.training.tiny_pairs FOLDER     (in two processes: FOLDER/rank<n>.safetensors, the gradients)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn

from models import load_task_model
from models.base import Batch
from tasks.retrieval import Retrieval
from tests.conftest import REFERENCE
from training.loop import Callback, Loop, fit
from training.negatives import StepFeatures
from training.optimizer import Recipe
from training.task import Objective
from training.task import Task as BaseTask

PAIRS, PASSES, SEED = 3, 4, 5  # a micro-batch, a step, of the run


class Task(BaseTask):
    """`tasks.retrieval.Retrieval` without data; ITM counts `itm` times."""

    rehearse = Retrieval.rehearse

    def __init__(self, itm: float):
        self._features, self._itm = StepFeatures(), itm

    def losses(self, model: nn.Module, batch: Batch, progress: float) -> dict[str, Tensor]:
        found = model(batch, gather=self._features.gather())
        return {"itc": found["itc"], "itm": self._itm * found["itm"]}


def tiny_model(dropout: float = 0.0) -> nn.Module:
    """The reference X-VLM for retrieval."""
    weights = REFERENCE / "vectors" / "xvlm" / "weights.safetensors"
    overrides = {"text": {"dropout": dropout}}
    return load_task_model("xvlm", "retrieval", REFERENCE / "xvlm.yaml", weights, overrides).train()


def pairs(number: int, dtype: torch.dtype = torch.float32) -> Batch:
    """Micro-batch `number`: its first pair shares its image with those of other micro-batches."""
    rng = torch.Generator().manual_seed(number)
    image = torch.randn(PAIRS, 3, 32, 32, generator=rng, dtype=torch.float64).to(dtype)
    ids = torch.randint(5, 200, (PAIRS, 6), generator=rng)
    idx = torch.tensor([number % 2, *(10 * number + k for k in range(2, PAIRS + 1))])
    return {"image": image, "text_ids": ids, "text_atts": torch.ones_like(ids), "idx": idx}


def hardest(weights: Tensor, count: int) -> Tensor:
    """In place of `torch.multinomial`: hard negatives without a draw."""
    return weights.argmax(-1, keepdim=True)


def run(fabric: Fabric, model: nn.Module, folder: Path, steps: int = 1, itm: float = 1.0, **changes: object) -> None:
    """`fit` with all PASSES micro-batches of a step shared by the processes."""
    world = fabric.world_size

    def micro_batches(first: int) -> Iterator[Batch]:
        dtype = torch.float64 if fabric._precision.precision == "64-true" else torch.float32
        number = first * world + fabric.global_rank
        while True:
            yield pairs(number, dtype)
            number += world

    settings = {"accumulate": PASSES // world, "rehearse": True, "snapshot_seconds": 0.0}
    loop = Loop("pairs", Recipe(lr=1e-3), steps, SEED, folder, {"pairs": PAIRS}, **(settings | changes))
    fit(fabric, Objective(model, Task(itm), 1), micro_batches, loop)


def gradients(fabric: Fabric, model: nn.Module, folder: Path, itm: float = 1.0) -> dict[str, Tensor]:
    """What reaches the optimizer in the first step."""
    found = {}

    def look() -> None:
        found.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    run(fabric, model, folder, itm=itm, callbacks=[Callback(after_backward=look)])
    return found


def main() -> None:
    """Two processes in double precision."""
    folder = Path(sys.argv[1])
    torch.multinomial = hardest
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="64-true")
    fabric.launch()
    found = gradients(fabric, tiny_model(), folder)
    save_file(found, folder / f"rank{fabric.global_rank}.safetensors")


if __name__ == "__main__":
    main()
